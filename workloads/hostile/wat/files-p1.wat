;; A core module that opens a file again and again, whatever comes of it.
(module
  (import "wasi_snapshot_preview1" "path_open"
    (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 16) "file")
  (func (export "_start")
    (loop $again
      ;; The directory, no flags, "file", create it, the rights to read and to write.
      (drop (call $open
        (i32.const 3) (i32.const 0) (i32.const 16) (i32.const 4)
        (i32.const 1) (i64.const 66) (i64.const 66) (i32.const 0) (i32.const 64)))
      (br $again))))

;; Collects no garbage: a list of arrays of 64 KiB that is never let go.
(module
  (type $bytes (array (mut i8)))
  (type $link (struct (field (ref null $link)) (field (ref $bytes))))
  (global $list (mut (ref null $link)) (ref.null $link))
  (memory (export "memory") 1)
  (func (export "_start")
    (loop $again
      (global.set $list
        (struct.new $link (global.get $list) (array.new_default $bytes (i32.const 65536))))
      (br $again))))

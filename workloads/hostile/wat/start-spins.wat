;; A start function that never returns: the guest spins before it is there.
(component
  (core module $m
    (func $start (loop (br 0)))
    (start $start)
    (func (export "run") (result i32) (i32.const 0)))
  (core instance $i (instantiate $m))
  (func $run (result (result)) (canon lift (core func $i "run")))
  (instance $exports (export "run" (func $run)))
  (export "wasi:cli/run@0.2.0" (instance $exports)))

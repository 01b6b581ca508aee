;; Makes resources of its own without end: the host keeps a table of their handles.
(component
  (type $r (resource (rep i32)))
  (core func $new (canon resource.new $r))
  (core module $m
    (import "" "new" (func $new (param i32) (result i32)))
    (func (export "run") (result i32)
      (loop $again (drop (call $new (i32.const 1))) (br $again))
      (unreachable)))
  (core instance $i (instantiate $m (with "" (instance (export "new" (func $new))))))
  (func $run (result (result)) (canon lift (core func $i "run")))
  (instance $exports (export "run" (func $run)))
  (export "wasi:cli/run@0.2.0" (instance $exports)))

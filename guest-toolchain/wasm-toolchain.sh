#!/bin/sh
# Prints the environment (export lines) for building wasm32-wasip2 and wasm32-wasip1 guests.
# Either rustup's own target, when installed, or with GUESTS_DEBIAN=1 Debian's rustc-web and a std built once from its sources.
# usage: eval "$(GUESTS_DEBIAN=1 sh wasm-toolchain.sh PREFIX)"
set -eu
P=$1; T=wasm32-wasip2; M=$(uname -m)
# Raise the number when PREFIX would hold something else than before: it is then built anew.
DONE=$P/.done-2
have() { d=$("$@" --print target-libdir --target $T 2>/dev/null) && ls "$d"/libstd-*.rlib >/dev/null 2>&1; }
# Never changes the user's rustup: says what to run instead (GUESTS_DEBIAN=1 takes the fallback without asking rustup).
if [ -z "${GUESTS_DEBIAN-}" ]; then
  if have rustc; then echo "# rustup target"; exit 0; fi
  echo "wasm guests: run 'rustup target add $T' (or GUESTS_DEBIAN=1 on Debian)" >&2; exit 1
fi
if [ ! -e "$DONE" ]; then
  rm -rf "$P"; mkdir -p "$P/debs" "$P/bin"
  dep() { apt-cache depends --no-recommends --no-suggests "$1" | sed -n "s/^ *Depends: \($2\)\$/\1/p" | head -1; }
  S=$(dep libstd-rust-web-dev 'libstd-rust-web-[0-9.]*'); L=$(dep "$S" 'libllvm[0-9]*'); N=${L#libllvm}
  if [ -z "$S" ] || [ -z "$L" ]; then echo "wasm guests: no package libstd-rust-web-dev here: run 'apt-get update' as root, on Debian 12 or newer" >&2; exit 1; fi
  ( cd "$P/debs" && apt-get -qq -o APT::Sandbox::User=root download rustc-web libstd-rust-web-dev "$S" "$L" "lld-$N" rust-web-llvm rust-web-src wasi-libc ) >&2
  for d in "$P"/debs/*.deb; do dpkg -x "$d" "$P"; done; rm -r "$P/debs"
  LIB=$P/usr/lib/$M-linux-gnu
  w() { printf '#!/bin/sh\nLD_LIBRARY_PATH=%s exec %s "$@"\n' "$LIB" "$2" > "$P/bin/$1"; chmod +x "$P/bin/$1"; }
  w rustc "$P/usr/bin/rustc"; w rust-lld "$P/usr/bin/lld-$N"; w wasm-ld "$P/usr/bin/wasm-ld-$N"
  ln -s "$P/usr/lib/rustlib/$M-unknown-linux-gnu/bin/wasm-component-ld" "$P/bin/"
  # Build std (and a correct crt1-command.o) once, into the sysroot: from then on it is an ordinary installed target.
  W=$P/build; mkdir -p "$W/src"
  cat > "$W/Cargo.toml" <<'X'
[package]
name = "crt1"
version = "0.0.0"
edition = "2024"
[profile.release]
opt-level = "s"
panic = "abort"
codegen-units = 1
[workspace]
X
  cp "$(dirname "$0")/crt1.rs" "$W/src/lib.rs"
  for t in $T wasm32-wasip1 wasm32-unknown-unknown; do
    O=$P/usr/lib/rustlib/$t/lib; mkdir -p "$O/self-contained"
    ( cd "$W"; RUSTC="$P/bin/rustc" RUSTC_BOOTSTRAP=1 PATH="$P/bin:$PATH" RUSTFLAGS="-Cembed-bitcode=yes" CARGO_TARGET_DIR="$W/t" \
        cargo rustc --release -q -Zbuild-std=std,panic_abort --target $t -- --emit=link,obj="$O/crt1-command.o" ) >&2
    cp "$W/t/$t/release/deps/"*.rlib "$O/"; rm -f "$O"/libcrt1-*.rlib
    case $t in *wasi*) mv "$O/crt1-command.o" "$O/self-contained/"; cp "$P/usr/lib/wasm32-wasi/crt1-reactor.o" "$P/usr/lib/wasm32-wasi/libc.a" "$O/self-contained/";; *) rm -f "$O/crt1-command.o";; esac
  done
  rm -rf "$W" "$P/usr/src" "$P/usr/lib/rustlib/src"; touch "$DONE"
fi
echo "export RUSTC='$P/bin/rustc'"
echo "export PATH='$P/bin:$PATH'"

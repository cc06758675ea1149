#!/usr/bin/env bash
# Builds and runs a crate outside of the checkout that depends on vpt by its path and trains, predicts and embeds in under 25
# lines, with default features and without; and shows that the library alone brings no command line, TLS or plots.
# Builds everything twice: some minutes, and the same again. TARGET_DIR keeps what is built.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

tree() { cargo tree --locked --manifest-path "$root/Cargo.toml" -e normal --prefix none "$@" | cut -d' ' -f1 | sort -u; }
unwanted='^(clap|clap_.*|ureq|rustls|plotters|indicatif)$'
if tree --no-default-features | grep -E "$unwanted"; then
  echo "the library alone depends on these" >&2
  exit 1
fi
echo "crates: $(tree | wc -l) by default, $(tree --no-default-features | wc -l) in the library alone"

mkdir "$work/src"
cat >"$work/src/main.rs" <<'RUST'
use vpt::prelude::*;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Reddish and bluish pictures of 32 x 32 pixels.
    let color = |i: usize, c: usize| if c == 2 * (i % 2) { 200 } else { 20 };
    let images = Array4::from_shape_fn((40, 32, 32, 3), |(i, y, x, c)| color(i, c) + (x * y % 13 + i) as u8 % 40);
    let labels: Vec<u32> = (0..40).map(|i| i % 2).collect();
    let data = MemorySet::new(&["red", "blue"], labelled(&images, &labels)?);
    let run = Trainer::new("clip-nano").method("vpt-shallow")?.epochs(2).train(data)?;
    println!("accuracy {:.2}", run.test().main());
    let answers = run.task()?.predict(&images)?;
    println!("{}, {}", answers[0].best().unwrap().0, answers[1].best().unwrap().0);
    let features = FrozenBackbone::open("clip-nano")?.embed_images(&images)?;
    println!("{:?}", features.dim());
    Ok(())
}
RUST
[ "$(wc -l <"$work/src/main.rs")" -lt 25 ] || { echo "not under 25 lines" >&2; exit 1; }

for features in '' ', default-features = false'; do
  cat >"$work/Cargo.toml" <<TOML
[package]
name = "outside"
version = "0.0.0"
edition = "2024"

[dependencies]
vpt = { path = "$root"$features }

[workspace]
TOML
  cp "$root/Cargo.lock" "$work/Cargo.lock"
  said=$(cargo run --quiet --release --manifest-path "$work/Cargo.toml" --target-dir "${TARGET_DIR:-$work/target}")
  expected=$'accuracy 1.00\nred, blue\n(40, 128)'
  if [ "$said" != "$expected" ]; then
    printf 'features "%s" print\n%s\nand not\n%s\n' "$features" "$said" "$expected" >&2
    exit 1
  fi
  echo "vpt${features:-, default features}: trains, predicts and embeds"
done

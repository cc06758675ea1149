#!/usr/bin/env bash
# Runs `vpt train --backbone clip-vit-b32 --data ./coco-subset` as it stands, with every default, on a checkpoint of that shape with random
# weights that is made for it (300 MB in a temporary folder). Half an hour on two cores, which is why the tests take two epochs.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo test --release --locked --test cli -- --ignored --nocapture the_first_command_runs_to_its_end

#!/bin/sh
# Which backend an A100 (sm_80) gets, why the others are not selected, and what vLLM 0.32 calls it. No GPU is needed.
set -eu

attnkit select --device sm_80 --model llama-3
attnkit select --device sm_80 --model llama-3 --json > selection.json
backend=$(python3 -c 'import json; print(json.load(open("selection.json"))["chosen"]["backend"])')
echo "selected: $backend"
attnkit resolve "$backend" --vllm 0.32.0

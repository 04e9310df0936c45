#!/bin/sh
# What an image does before it starts the engine: detect, select, validate, report. Writes into the current folder.
set -eu

attnkit tiny-model model
attnkit boot --model model --backend TORCH_SDPA --level quick --report report.json --ready ready.json --metrics attnkit.prom
attnkit report report.json --html report.html
attnkit report report.json

#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The layer check can fail, and the tree passes it.
set -euo pipefail
python3 "$SOURCE_DIR/tools/check_layers.py" --self-test
python3 "$SOURCE_DIR/tools/check_layers.py" "$SOURCE_DIR"

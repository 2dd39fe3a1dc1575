"""Chat with a model in a browser: ``python demo.py --cfg-path eval_configs/chatbridge_eval.yaml --gpu-id 0``."""

from __future__ import annotations

import sys

from chatbridge.demo.command import main

if __name__ == "__main__":
    sys.exit(main())

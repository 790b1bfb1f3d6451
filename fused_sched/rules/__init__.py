"""An optimizer's arithmetic, written once: read from Python, run by Triton, C++ and torch.

The build imports this folder on its own, where neither torch nor Triton is installed: only
``evaluate.py`` and ``arithmetic.py`` may import torch.
"""

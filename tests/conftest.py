"What every test file may count on: the project's scripts can be imported, nothing draws on a screen, one thread."
import os, sys
from pathlib import Path

root = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(root/'dev'))
os.environ.setdefault('MPLBACKEND', 'agg')

def pytest_configure(config):
    try: import torch
    except ImportError: return
    torch.set_num_threads(1)

"What every test file may count on: the project's scripts can be imported, nothing draws on a screen, one thread."
import locale, os, sys
from pathlib import Path
import pytest

root = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(root/'dev'))
os.environ.setdefault('MPLBACKEND', 'agg')

def pytest_configure(config):
    try: import torch
    except ImportError: return
    torch.set_num_threads(1)

@pytest.fixture(autouse=True)
def same_locale():
    "SimpleITK leaves the C locale behind when it writes DICOM; the next test would read text files as ASCII."
    was = locale.setlocale(locale.LC_CTYPE)
    yield
    locale.setlocale(locale.LC_CTYPE, was)

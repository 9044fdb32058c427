"""All that spines in three dimensions cost, in one run: gradient correlation against kornia, the 3D generator against plain torch, distances and ICP against trimesh, and the peak memory of chapter 31.

    python benchmarks/spines.py --peer-python kornia-env/bin/python     # the environment of gradient.py; geometry.py wants `pip install trimesh rtree` here

The scripts run one after the other, each with its own defaults; each prints its ratios. The memory is that of the kernel which executes the whole chapter, libraries included.
"""
import argparse, subprocess, sys, tempfile
from pathlib import Path

here = Path(__file__).resolve().parent
chapter = '''
import resource, sys
import nbformat
from nbclient import NotebookClient
nb = nbformat.read(sys.argv[1], 4)
NotebookClient(nb, timeout=900, kernel_name='python3', resources={'metadata': {'path': sys.argv[2]}}).execute()
print(f'chapter 31: {resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss/2**20:.2f} GiB at its peak (goal: under 6)')
'''

if __name__ == '__main__':
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--peer-python', help='python of an environment with kornia; without it that comparison is left out')
    o = ap.parse_args()
    peer = ['--peer-python', o.peer_python] if o.peer_python else []
    with tempfile.TemporaryDirectory() as folder:
        calls = [[here/'gradient.py', *peer], [here/'generator3d.py'], [here/'geometry.py'], ['-c', chapter, here.parent/'nbs/31_cyclegan3d.ipynb', folder]]
        for call in calls: subprocess.run([sys.executable, *map(str, call)], check=True)

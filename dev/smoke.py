"What somebody who only has the wheel can do: import every module, scan a generated patient, segment it, write and read the answer. Run outside the checkout."
import importlib, pkgutil, sys, tempfile
from pathlib import Path

import xmodseg
seen = {m.split('.')[0] for m in sys.modules}
drawing = sorted({'matplotlib', 'ipywidgets', 'IPython', 'fastcore', 'nbdev'} & seen)
assert not drawing, f'import xmodseg brings in {drawing}'

names = sorted(m.name for m in pkgutil.iter_modules(xmodseg.__path__) if not m.name.startswith('_') and m.name != 'view')
for n in names: importlib.import_module(f'xmodseg.{n}')
drawing = sorted({'matplotlib', 'ipywidgets', 'IPython', 'fastcore', 'nbdev'} & {m.split('.')[0] for m in sys.modules})
assert not drawing, f'xmodseg brings in {drawing}'
print(f'xmodseg {xmodseg.__version__} from {Path(xmodseg.__file__).parent.parent.name}: {len(names)} modules', flush=True)

import numpy as np
from xmodseg.cohort import phantom_field
from xmodseg.files import read_volume, write_volume
from xmodseg.metrics import dice
from xmodseg.sadn import load_sadn

field = phantom_field(901)     # the slab around the spine that the shipped net was trained for
scan = field.image
with tempfile.TemporaryDirectory() as tmp:
    back = read_volume(write_volume(scan, Path(tmp)/'scan.nii.gz'))
    assert back.shape == scan.shape and np.allclose(back.affine, scan.affine) and np.allclose(back.data, scan.data, atol=1e-3)
    print(f'volume written and read: {back.shape}, {tuple(round(float(s), 2) for s in back.spacing)} mm', flush=True)
    net = load_sadn()
    mask = net.segment(back)
    assert mask.shape == back.shape and np.allclose(mask.affine, back.affine) and set(np.unique(mask.data)) <= {0, 1}, 'the mask is not a label on the grid of the scan'
    again = read_volume(write_volume(mask, Path(tmp)/'mask.nii.gz'), kind='label')
    score = float(dice(again.data > 0, field.mask.data > 0))
print(f'vertebrae segmented in a cone-beam scan: Dice {score:.3f}')
assert score > .5, f'Dice {score:.3f}: the shipped weights do not find vertebrae'

"""The picture at the top of README.md: a stranger to each shipped net, translated and segmented, beside the truth that training never saw.

    python dev/figure.py             writes nbs/images/overview.png, in half a minute on one CPU core
"""
import io
import torch
from PIL import Image
from xmodseg.cohort import phantom_field
from xmodseg.column import find_bone
from xmodseg.cyclegan3d import load_cyclegan3d
from xmodseg.films import phantom_film
from xmodseg.metrics import dice
from xmodseg.sadn import load_sadn
from xmodseg.spines import spine_cases
from xmodseg.tdgan import load_tdgan
from xmodseg.view import canvas, cut, overlay, show
from tree import root

def cone_beam(ax, seed=901):
    "Vertebrae of a patient whom the net has not met."
    scan, net = phantom_field(seed), load_sadn()
    mask, clean = net.segment(scan.image), net.translate(scan.image)
    x, t, c, m = (cut(v, 0) for v in (scan.image, scan.truth, clean, mask))
    y, hu = cut(scan.mask, 0).image > 0, (-450, 700)
    told = f'vertebrae: Dice {dice(mask.data > 0, scan.mask.data > 0):.2f}'
    panels(ax, ('cone-beam CT', x.image, {}), ('read as CT', c.image, {}), (told, x.image, dict(vertebra=m.image)), ('hidden truth', t.image, dict(vertebra=y)), spacing=x.spacing, hu=(hu,)*4)

def spine(ax):
    "Bone of a spine, found by a threshold in what was MR."
    p, = spine_cases([(7000, 30.)], 'opposed', world=dict(shape=(48, 56, 80), spacing=(2.5, 2.5, 2.5)), workers=1)
    net = load_cyclegan3d()
    ct, bone = net.translate(p.mr), p.labels.with_data((p.labels.data >= 1) & (p.labels.data <= 17), 'label')
    mask = find_bone(ct, -50., centres={u.name: u.centre_mm for u in p.vertebrae})
    x, c, t, m, y = (cut(v, 1, 33) for v in (p.mr, ct, p.ct, mask, bone))
    hu = (-150, 400)
    panels(ax, ('MR', x.image, {}), ('translated to CT', c.image, {}), (f'bone: Dice {dice(mask.data > 0, bone.data > 0):.2f}', x.image, dict(bone=m.image > 0)), ('hidden truth', t.image, dict(bone=y.image > 0)),
           spacing=x.spacing, hu=((0, float(x.image.max())), hu, (0, float(x.image.max())), hu))

@torch.no_grad()
def chest(ax, seed=43001):
    "Four organs in an X-ray, with labels from CT alone."
    film, net = phantom_film(seed, True), load_tdgan()
    x, y = (torch.from_numpy(film[k]).float() for k in 'xy')
    names, drr, p = net.config['films']['organs'], net.translate(x[:, None])[:, 0], net.segment(x[:, None])
    told = f'organs: Dice {dice(p[0] > .5, y[0] > .5):.2f}'
    organs = lambda m: dict(zip(names, m[0] > .5))
    panels(ax, ('X-ray', x[0], {}), ('as a radiograph of a CT', drr[0], {}), (told, x[0], organs(p)), ('hidden truth', x[0], organs(y)), spacing=None, hu=((-1, 1),)*4)

def panels(ax, *pictures, spacing, hu):
    "Four pictures beside each other: title, image, outlines."
    for a, (title, image, masks), limits in zip(ax, pictures, hu): overlay(image, masks, title, a, spacing=spacing, hu=limits) if masks else show(image, title, a, spacing=spacing, hu=limits)

def overview():
    "One row a paper."
    torch.set_num_threads(1)
    fig, ax = canvas(3, 4, 2.1)
    for row, method, name in zip(ax, (cone_beam, spine, chest), ('SADN', 'SCOL', 'TD-GAN')):
        method(row); row[0].set_ylabel(name, fontsize=9)
    return fig

if __name__ == '__main__':
    fig, path = overview(), root/'nbs/images/overview.png'
    fig.savefig(png := io.BytesIO(), format='png', dpi=110)
    path.parent.mkdir(exist_ok=True)
    Image.open(png).convert('RGB').quantize(128).save(path, optimize=True)
    print(f'{path.relative_to(root)}: {path.stat().st_size/1000:.0f} kB')

"Grids, resampling, windows and slices: values that a flipped sign or half a voxel would change."
import subprocess, sys
import numpy as np
import pytest
import torch
from xmodseg.core import XModSegError
from xmodseg.volume import Grid, Volume, from_slices, grid_difference, map_slices, to_slices, unwindow, window

rng = np.random.default_rng(1)
RAS = np.array([[2., 0, 0, -20], [0, 1.5, 0, 5], [0, 0, 3, 40], [0, 0, 0, 1]])


def stored(affine, shape, order, flips):
    "The same grid counted in another order of axes."
    m = np.eye(4)[:, [*order, 3]]
    for new, old in enumerate(order):
        if flips[new]: m[old, new] = -1; m[old, 3] = shape[old] - 1
    return affine @ m, tuple(shape[o] for o in order)


ORDERS = [((0, 1, 2), (0, 0, 0)), ((0, 1, 2), (1, 1, 0)), ((2, 0, 1), (0, 1, 0)), ((1, 2, 0), (1, 0, 1)), ((2, 1, 0), (1, 1, 1)), ((0, 2, 1), (0, 0, 1))]


def world(g):
    "mm of every voxel: (3, X, Y, Z)."
    return np.einsum('rc,cxyz->rxyz', g.affine, np.concatenate([np.indices(g.shape), np.ones((1, *g.shape))]))[:3]


def linear(g): return np.einsum('r,rxyz->xyz', [1., -2., .5], world(g)) + 7


def turned(degrees):
    "An oblique grid."
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, -s, 0, 3], [s, c, 0, -4], [0, 0, 1, 5], [0, 0, 0, 1]]) @ np.diag([2., 1.5, 3, 1])


@pytest.mark.parametrize('order,flips', ORDERS)
def test_VOLUME_E3_ras_keeps_every_voxel_in_place(order, flips):
    a, shape = stored(RAS, (12, 9, 7), order, flips)
    v = Volume(rng.normal(size=shape), a)
    r = v.to_ras()
    assert r.axes == 'RAS' and r.shape == (12, 9, 7) and np.allclose(r.affine, RAS)
    assert np.array_equal(r.like(v).data, v.data)
    for i in rng.integers(0, shape, (5, 3)):
        j = np.rint(np.linalg.inv(r.affine) @ v.affine @ [*i, 1])[:3].astype(int)
        assert r.data[tuple(j)] == v.data[tuple(i)]


def test_VOLUME_E3_oblique_turns_less_than_45_degrees():
    assert Grid((5, 5, 5), turned(40)).axes == 'RAS' and Grid((5, 5, 5), turned(50)).axes == 'ALS' and Grid((5, 5, 5), turned(180)).axes == 'LPS'
    v = Volume(rng.normal(size=(6, 7, 5)), turned(30))
    assert np.array_equal(v.to_ras().data, v.data) and np.allclose(v.spacing, (2, 1.5, 3))


@pytest.mark.parametrize('spacing', [1., (3., 2., 1.1), (2, 1.5, 3), 10.])
@pytest.mark.parametrize('affine', [RAS, turned(20), RAS @ np.diag([-1., -1, 1, 1])])
def test_VOLUME_E4_spacing_exact_centre_kept(spacing, affine):
    g = Grid((20, 31, 12), affine)
    n = g.resample(spacing)
    assert np.allclose(n.spacing, spacing) and np.allclose(n.affine[:3, :3]/n.spacing, g.affine[:3, :3]/g.spacing)
    mid = lambda g: g.affine @ [*(np.array(g.shape) - 1)/2, 1]
    assert np.allclose(mid(n), mid(g))
    assert (np.abs(np.array(n.shape)*n.spacing - np.array(g.shape)*g.spacing) <= np.array(n.spacing)/2 + 1e-9).all()


@pytest.mark.parametrize('order,flips', ORDERS)
def test_VOLUME_E5_a_linear_field_is_reproduced(order, flips):
    a, shape = stored(RAS, (20, 24, 18), order, flips)
    g = Grid(shape, a)
    v = Volume(linear(g), a)
    n = v.resample((1.7, 2.3, 1.9))
    inner = tuple(slice(3, -3) for _ in range(3))
    assert np.abs(n.data - linear(n))[inner].max() < 1e-3
    oblique = Grid((6, 6, 6), np.array([[.9, -.2, 0, 0], [.2, .9, 0, 18], [0, 0, 1, 60], [0, 0, 0, 1]]))
    assert np.abs(v.like(oblique).data - linear(oblique)).max() < 1e-3


def test_VOLUME_E5_flip_and_resample_commute():
    v = Volume(rng.normal(size=(21, 16, 11)), RAS)
    f = v.with_data(v.data[::-1, :, ::-1])
    assert np.abs(f.resample(2.6).data - v.resample(2.6).data[::-1, :, ::-1]).max() < 1e-3


def test_VOLUME_E5_half_voxel_values():
    v = Volume(np.arange(4.)[:, None, None]*np.ones((4, 2, 2)), np.eye(4))
    assert np.allclose(v.resample((2, 1, 1)).data[:, 0, 0], [.5, 2.5]) and np.allclose(v.resample((.5, 1, 1)).data[:, 0, 0], [0, .25, .75, 1.25, 1.75, 2.25, 2.75, 3])


def test_labels_are_nearest_and_outside_is_background():
    y = Volume(rng.integers(0, 4, (9, 9, 9))*50, RAS, 'label')
    assert y.data.dtype == np.uint8 and set(np.unique(y.resample(1.3).data)) <= {0, 50, 100, 150}
    far = Grid((3, 3, 3), RAS + [[0, 0, 0, 1000], [0]*4, [0]*4, [0]*4])
    assert (y.like(far).data == 0).all()
    x = Volume(rng.normal(size=(9, 9, 9)), RAS)
    assert (x.like(far).data == x.data.min()).all() and x.like(far, -7).data[0, 0, 0] == -7


def test_crop_stays_in_place():
    v = Volume(rng.normal(size=(9, 8, 7)), turned(10))
    c = v.crop((2, 0, 3), (7, 8, 5))
    assert np.array_equal(c.data, v.data[2:7, :, 3:5]) and np.allclose(c.affine @ [0, 0, 0, 1], v.affine @ [2, 0, 3, 1])
    back = c.like(v, 0)
    assert np.array_equal(back.data[2:7, :, 3:5], c.data) and back.data[0, 0, 0] == 0


@pytest.mark.parametrize('dtype', [bool, np.int8, np.uint16, np.int64, np.float64])
def test_labels_of_every_type(dtype):
    a = (rng.integers(0, 2, (4, 5, 6))).astype(dtype)
    y = Volume(a, RAS, 'label')
    assert y.data.dtype == np.uint8 and np.array_equal(y.data, a)
    assert Volume(np.full((2, 2, 2), -5), RAS, 'label').data.dtype == np.int16 and Volume(np.full((2, 2, 2), 70000), RAS, 'label').data.dtype == np.int32


def test_big_endian_and_read_only_input():
    a = rng.integers(-100, 100, (4, 5, 6)).astype('>i2')
    a.flags.writeable = False
    assert np.array_equal(Volume(a, RAS).data, a) and Volume(a, RAS).data.dtype == np.float32


@pytest.mark.parametrize('call,words', [
    (lambda: Volume(np.zeros((3, 3)), RAS), 'three axes.*\\(3, 3\\)'), (lambda: Volume(np.zeros((3, 3, 0)), RAS), 'three axes'), (lambda: Volume(np.zeros((3, 3, 3, 1)), RAS), 'three axes'),
    (lambda: Volume(np.zeros((3, 3, 3)), RAS, 'mask'), 'kind'), (lambda: Volume(np.zeros((3, 3, 3)), np.eye(3)), '\\(4,4\\)'), (lambda: Volume(np.zeros((3, 3, 3)), RAS*np.nan), 'NaN'),
    (lambda: Volume(np.zeros((3, 3, 3)), RAS*[1, 0, 1, 1]), 'singular'), (lambda: Volume(np.zeros((3, 3, 3)), np.ones((4, 4))), 'singular'), (lambda: Volume(np.zeros((3, 3, 3)), np.eye(4) + .3*np.eye(4, k=1)*[[1], [0], [0], [0]]), 'sheared.*73.3'),
    (lambda: Volume(np.full((3, 3, 3), .4), RAS, 'label'), 'whole numbers.*0.4'), (lambda: Volume(np.full((3, 3, 3), np.nan), RAS, 'label'), 'whole numbers'), (lambda: Volume(np.full((3, 3, 3), 2**40), RAS, 'label'), 'do not fit'),
    (lambda: Grid((3, 3, 3), RAS).resample(0), 'positive length'), (lambda: Grid((3, 3, 3), RAS).resample((1, -1, 1)), 'positive length'), (lambda: Grid((3, 3, 3), RAS).resample(np.inf), 'positive length'), (lambda: Grid((300, 300, 300), RAS).resample(1e-3), 'too many voxels'),
    (lambda: Grid((3, 3, 3), RAS).crop((0, 0, 0), (4, 3, 3)), 'leaves the volume'), (lambda: Grid((3, 3, 3), RAS).crop((2, 0, 0), (2, 3, 3)), 'leaves the volume'), (lambda: Volume(np.zeros((3, 3, 3)), RAS).with_data(np.zeros((3, 3, 2))), 'same grid'),
    (lambda: window(np.zeros(3), 5, 5), 'lo < hi'), (lambda: unwindow(np.zeros(3), 5, np.nan), 'lo < hi'), (lambda: to_slices(np.zeros((3, 3, 3)), 3), 'axis=3'), (lambda: from_slices(np.zeros((3, 3, 3)), -1), 'axis=-1')])
def test_refused(call, words):
    with pytest.raises(XModSegError, match=words) as e: call()
    assert e.value.found is not None and e.value.needed is not None


def test_refusals_name_the_case():
    with pytest.raises(XModSegError, match='^case 7: '): Volume(np.zeros((3, 3, 3)), RAS*np.nan, name='case 7')


def test_shear_threshold():
    Grid((3, 3, 3), np.eye(4) + .005*np.eye(4, k=1)*[[1], [0], [0], [0]])
    with pytest.raises(XModSegError): Grid((3, 3, 3), np.eye(4) + .02*np.eye(4, k=1)*[[1], [0], [0], [0]])


def test_grid_difference():
    g = Grid((10, 10, 10), RAS)
    move = lambda mm: Grid((10, 10, 10), RAS + [[0, 0, 0, mm], [0]*4, [0]*4, [0]*4])
    assert grid_difference(g, g) == '' and grid_difference(g, move(.07)) == '' and '0.1 mm' in grid_difference(g, move(.1)) and '37.0 mm' in grid_difference(g, move(-37))
    assert 'spacings' in grid_difference(g, Grid((10, 10, 10), RAS @ np.diag([1.1, 1, 1, 1]))) and 'shapes' in grid_difference(g, Grid((10, 10, 9), RAS))
    assert 'RAS and LPS' in grid_difference(g, Grid((10, 10, 10), stored(RAS, (10, 10, 10), *ORDERS[1])[0]))


@pytest.mark.parametrize('make', [np.array, torch.tensor])
def test_VOLUME_E6_window(make):
    x = make([-5000., -1000., -250., 500., 2000., 3000.])
    assert np.allclose(window(x), [-1, -1, -.5, 0, 1, 1]) and np.allclose(unwindow(window(x)), [-1000, -1000, -250, 500, 2000, 2000])
    assert np.allclose(window(x, 0, 1000), [-1, -1, -1, 0, 1, 1]) and np.allclose(unwindow(make([0.]), -160, 240), 40)


def test_VOLUME_E6_gradient_passes_inside_the_window():
    x = torch.tensor([-2000., 0., 100.], requires_grad=True)
    window(x).sum().backward()
    assert torch.allclose(x.grad, torch.tensor([0., 2/3000, 2/3000]))


@pytest.mark.parametrize('axis,shape,corner', [(0, (3, 5, 4), (1, 3, 4)), (1, (4, 5, 3), (2, 1, 4)), (2, (5, 4, 3), (2, 3, 1))])
def test_VOLUME_E7_top_left_of_a_slice(axis, shape, corner):
    "Sagittal: up and front; coronal: up and right; axial: front and right."
    a = np.zeros((3, 4, 5))
    top = np.array((3, 4, 5)) - 1; top[axis] = 1
    a[tuple(top)] = 1
    s = to_slices(a, axis)
    assert s.shape == ((3, 4, 5)[axis], *[(3, 4, 5)[i] for i in reversed([i for i in range(3) if i != axis])]) and s[1, 0, 0] == 1 and s.sum() == 1
    assert np.array_equal(from_slices(s, axis), a) and s.flags.c_contiguous
    t = torch.from_numpy(a)
    assert torch.equal(to_slices(t, axis), torch.from_numpy(s)) and torch.equal(from_slices(to_slices(t, axis), axis), t)


@pytest.mark.parametrize('order,flips', ORDERS)
@pytest.mark.parametrize('axis', [0, 1, 2])
def test_map_slices_identity_on_the_scans_own_grid(order, flips, axis):
    a, shape = stored(RAS, (36, 34, 40), order, flips)
    v = Volume(rng.uniform(-900, 1900, shape), a, name='case')
    y = map_slices(v, lambda x: x, axis=axis, batch=7)
    assert np.array_equal(y.affine, v.affine) and y.shape == v.shape and y.name == 'case' and np.abs(y.data - v.data).max() < 1e-3


def test_map_slices_does_not_touch_its_input():
    v = Volume(rng.uniform(-900, 1900, (36, 34, 40)), RAS)
    before = v.data.copy()
    map_slices(v, lambda x: x.mul_(0), axis=2)
    assert np.array_equal(v.data, before)


def test_map_slices_what_the_net_sees():
    v, seen = Volume(linear(Grid((36, 34, 40), RAS))*5, RAS), []
    map_slices(v, lambda x: seen.append(x.clone()) or x, axis=0, hu=(-2000, 3000))
    x = seen[0]
    assert x.shape == (8, 1, 48, 48) and x.dtype == torch.float32 and not x.requires_grad
    assert torch.allclose(x[0, 0, 4:44, 7:41], torch.from_numpy(window(to_slices(v.data, 0)[0], -2000, 3000)))
    assert torch.equal(x[:, :, 0], x[:, :, 4]) and torch.equal(x[..., 0], x[..., 7])       # the rim repeats the edge
    assert x[0, 0, 10, 20] > x[0, 0, 30, 20] and x[0, 0, 20, 10] < x[0, 0, 20, 30]         # the field grows upwards and to the back


def test_map_slices_labels_from_scores():
    v = Volume(rng.uniform(-900, 1900, (36, 34, 40)), RAS)
    three = lambda x: torch.cat([-x, 0*x, x - .5], 1)
    y = map_slices(v, three, axis=1, kind='label')
    x = window(v.data)
    assert y.kind == 'label' and np.array_equal(y.data, np.where(x < 0, 0, np.where(x > .5, 2, 1)))
    p = map_slices(v, three, axis=1, kind='prob')
    assert len(p) == 3 and np.allclose(p[2].data, x - .5, atol=1e-5) and np.allclose(map_slices(v, lambda x: x/2, kind='prob').data, x/2, atol=1e-5)
    assert np.allclose(map_slices(v, lambda x: x, hu_out=(0, 1)).data, (x + 1)/2, atol=1e-5)


@pytest.mark.parametrize('spacing', [1., 2.5, (1., 4.)])
def test_map_slices_spacing_in_the_plane_only(spacing):
    v, seen = Volume(linear(Grid((40, 36, 34), RAS)), RAS), []
    y = map_slices(v, lambda x: seen.append(tuple(x.shape)) or x, axis=0, spacing=spacing, min_size=8, divisor=1, batch=99)
    sy, sz = np.broadcast_to(spacing, 2)
    assert seen == [(40, 1, round(34*3/sz), round(36*1.5/sy))]
    inner = tuple(slice(4, -4) for _ in range(3))
    assert np.abs(y.data - v.data)[inner].max() < .05


def test_import_stays_light():
    code = "import sys, xmodseg.volume, xmodseg.files, xmodseg.folders; print([m for m in ('SimpleITK', 'nibabel', 'scipy', 'skimage', 'matplotlib', 'PIL') if m in sys.modules])"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout.strip() == '[]'

def test_the_rim_of_a_fine_scan_is_answered_too():
    v = Volume(np.full((4, 44, 44), 500.), np.diag([.5, .5, .5, 1]))
    assert np.abs(map_slices(v, lambda x: x, spacing=3., min_size=4).data - 500).max() < 1

@pytest.mark.parametrize('kind', ['int16', 'int8', 'uint8', 'uint16', 'int64'])
def test_VOLUME_E6_whole_numbers_do_not_wrap(kind):
    a = np.array([0, 50, 127]).astype(kind)
    wanted = (a.astype(float).clip(-1024, 32000) + 1024)/33024*2 - 1
    np.testing.assert_allclose(window(a, -1024, 32000), wanted, atol=1e-6)
    if kind != 'uint16': np.testing.assert_allclose(window(torch.from_numpy(a), -1024, 32000).numpy(), wanted, atol=1e-6)

"Pictures by value: where a voxel lands, which grey it gets, what is refused. No display is needed."
import gzip, sys, types, warnings
import numpy as np
import pytest
import torch
from xmodseg.core import Bag, XModSegError
from xmodseg import view
from xmodseg.view import LossBoard, ORGAN_COLOURS, canvas, cut, organ_colour, ortho, overlay, panel, path_grid, show, volume

def vol(data, spacing=(1., 2., 3.)): return types.SimpleNamespace(data=np.asarray(data), affine=np.diag([*spacing, 1.]), spacing=spacing)

@pytest.mark.parametrize('axis', range(3))
def test_VIEW_E1_right_front_head_is_the_top_left_corner(axis):
    v = np.zeros((4, 5, 6)); v[3, 4, 5] = 1
    c = cut(vol(v), axis, v.shape[axis] - 1)
    rest = [k for k in range(3) if k != axis]
    assert c.image[0, 0] == 1 and c.image.sum() == 1
    assert c.image.shape == (v.shape[rest[1]], v.shape[rest[0]]) and c.spacing == ((1., 2., 3.)[rest[1]], (1., 2., 3.)[rest[0]])

def test_VIEW_E1_a_stored_flip_does_not_change_the_picture():
    from xmodseg.volume import Volume
    data = np.random.default_rng(0).normal(size=(4, 5, 6)).astype(np.float32)
    ras = Volume(data, np.diag([1., 2., 3., 1.]))
    flipped = Volume(data[::-1].transpose(2, 0, 1), np.array([[0, -1., 0, 3], [0, 0, 2, 0], [3, 0, 0, 0], [0, 0, 0, 1]]))
    for axis in range(3):
        a, b = cut(ras, axis, 1), cut(flipped, axis, 1)
        np.testing.assert_array_equal(a.image, b.image)
        assert a.spacing == pytest.approx(b.spacing)

def test_VIEW_E2_scale_belongs_to_the_numbers():
    assert show(np.full((2, 2), -.4)).images[0].get_clim() == (-1, 1)
    assert show(np.full((2, 2), .4)).images[0].get_clim() == (0, 1)
    assert show(np.array([[-900., 1200.]])).images[0].get_clim() == (-900, 1200)
    assert show(np.array([[-900., 1200.]]), hu=(0, 80)).images[0].get_clim() == (0, 80)
    assert show(np.eye(2)).images[0].cmap.name == 'gray'

def test_VIEW_E3_millimetres_and_the_scale_bar():
    ax = show(np.zeros((10, 20)), spacing=(3., .5))
    assert tuple(ax.images[0].get_extent()) == (0, 10, 30, 0)
    x = ax.lines[0].get_xdata()
    assert (x[1] - x[0])*10 == pytest.approx(float(ax.texts[0].get_text().split()[0])) and (x[1] - x[0]) <= 1/3
    assert not show(np.zeros((10, 20))).lines

@pytest.mark.parametrize('x', [torch.zeros(2, 1, 4, 4), np.zeros(5), np.zeros((2, 3, 4))])
def test_show_refuses_what_is_not_one_plane(x):
    with pytest.raises(XModSegError, match='not one plane.*found'): show(x)

def test_show_takes_any_tensor():
    for x in (torch.rand(1, 1, 4, 5, requires_grad=True), torch.zeros(4, 5, dtype=torch.bfloat16), torch.zeros(1, 4, 5, dtype=torch.bool)):
        assert show(x).images[0].get_array().shape == (4, 5)

def test_one_colour_per_organ():
    plain = {k: v for k,v in ORGAN_COLOURS.items() if k not in ('mask', 'spine')}
    assert len(set(plain.values())) == len(plain)
    assert organ_colour('kidney_r') == organ_colour('kidney_l') == ORGAN_COLOURS['kidney'] and organ_colour('L5') == ORGAN_COLOURS['vertebra']
    assert organ_colour('LA') == ORGAN_COLOURS['la'] != organ_colour('label') and organ_colour('L') != ORGAN_COLOURS['vertebra']
    assert organ_colour(2) == organ_colour('2') and all(organ_colour(n).startswith('#') for n in (0, 77, 'no such organ', ''))

def test_every_organ_of_the_phantom_has_a_colour():
    from xmodseg.phantom import LABELS
    known = set(ORGAN_COLOURS.values())
    assert [n for n in LABELS if n != 'air' and organ_colour(n) not in known] == []

def test_overlay_draws_on_the_voxels():
    m = np.zeros((6, 8), int); m[:2, 5:] = 3; m[4, 1] = 7
    ax = overlay(np.zeros((6, 8)), m, names=dict(liver=3, aorta=7), spacing=(2., 1.), fill=.5)
    from matplotlib.colors import to_hex
    assert [to_hex(c.get_edgecolor()[0]) for c in ax.collections] == [ORGAN_COLOURS['liver'], ORGAN_COLOURS['aorta']]
    v = ax.collections[0].get_paths()[0].vertices
    assert (v[0] == v[-1]).all() and v[:, 0].min() == 5 and v[:, 0].max() == 8 and v[:, 1].min() == 0 and v[:, 1].max() == 4
    tint = ax.images[1].get_array()
    assert tint[0, 6, 3] == .5 and tint[3, 3, 3] == 0
    assert ax.get_xlim() == (0, 8) and ax.get_ylim() == (12, 0)

def test_overlay_tells_masks_from_label_maps():
    two = np.array([[0, 1], [2, 2]])
    assert len(overlay(two, two).collections) == len(overlay(two, torch.tensor(two)).collections) == 2
    assert len(overlay(two, two/2.).collections) == len(overlay(two, two > 0).collections) == 1
    with pytest.raises(XModSegError, match=r"'liver'.*\(2, 3\) on \(2, 2\)"): overlay(two, dict(liver=np.ones((2, 3))))

def test_panel_and_path_grid():
    fig = panel({'a': np.eye(3), 'b': torch.eye(3)}, {'b': np.eye(3)}, title='t')
    assert [ax.get_title() for ax in fig.axes] == ['a', 'b'] and len(fig.axes[1].collections) == 1 and not fig.axes[0].collections
    p = Bag(y_h=torch.rand(2, 1, 4, 4), c_l=torch.rand(2, 9, 2, 2), m_l=torch.rand(2, 1, 4, 4), x_h=torch.rand(2, 1, 3, 4, 4), z=None)
    fig = path_grid(p, item=1)
    assert [ax.get_title() for ax in fig.axes if ax.get_title()] == ['x_h', 'y_h', 'm_l']
    np.testing.assert_array_equal(fig.axes[0].images[0].get_array(), p.x_h[1, 0, 1])
    with pytest.raises(XModSegError, match='no images'): panel({})

def test_ortho_keeps_one_colour_and_one_grey_range():
    labels = np.zeros((8, 8, 8), np.uint8); labels[:2], labels[6:] = 1, 2
    fig = ortho(vol(np.arange(512.).reshape(8, 8, 8)), vol(labels), at=(0, 4, 4))
    assert {ax.images[0].get_clim() for ax in fig.axes} == {(0, 511)}
    first = [ax.collections[0].get_edgecolor()[0].tolist() for ax in fig.axes]
    assert first[0] == first[1] == first[2]          # the sagittal cut sees label 1 only, and must not repaint it
    with pytest.raises(XModSegError, match='differ in shape'): ortho(vol(labels), vol(labels[1:]))
    with pytest.raises(XModSegError, match='index 9 on axis 0.*0 to 7'): ortho(vol(labels), at=(9, 0, 0))

def test_canvas_is_not_remembered():
    import matplotlib
    matplotlib.use('agg', force=False)
    import matplotlib.pyplot as plt
    before = plt.get_fignums()
    fig, axes = canvas(2, 2)
    assert plt.get_fignums() == before and axes.shape == (2, 2) and fig._repr_png_()[:4] == b'\x89PNG'

def run(board, steps, log=lambda i: dict(rec=1/i)):
    for i in range(1, steps + 1): board(Bag(step=i, steps=steps, seconds=1., log=log(i)))
    return board

@pytest.mark.parametrize('steps', [1, 7, 100, 101, 1000, 4321])
def test_loss_board_thins_and_keeps_the_ends(steps):
    b = run(LossBoard(keep=100), steps)
    assert b.steps[0] == 1 and b.steps[-1] == steps and len(b.steps) <= 101 and len(b.steps) >= min(steps, 50)
    assert b.steps == sorted(set(b.steps)) and b.curves['rec'] == [1/s for s in b.steps]

def test_loss_board_late_and_vanishing_terms():
    b = run(LossBoard(), 10, lambda i: dict(a=1.) if i <= 5 else dict(b=torch.tensor(2.)))
    assert np.isnan(b.curves['a'][5:]).all() and np.isnan(b.curves['b'][:5]).all() and b.curves['b'][5:] == [2.]*5
    assert len(b.figure().axes[0].lines) == 2 and LossBoard().figure().axes[0].get_title() == 'no step yet'

def test_loss_board_is_silent_outside_a_notebook(capsys):
    run(LossBoard(every=0), 5)
    assert capsys.readouterr() == ('', '')

class Display:
    "Stands in for the notebook: counts outputs and updates."
    def __init__(self, monkeypatch):
        self.calls = []
        import IPython, IPython.display
        monkeypatch.setattr(IPython, 'get_ipython', lambda: types.SimpleNamespace(kernel=1))
        monkeypatch.setattr(IPython.display, 'display', lambda fig, display_id, update: self.calls.append((display_id, update)))

def test_loss_board_updates_one_output(monkeypatch):
    d = Display(monkeypatch)
    run(LossBoard(every=0), 6)
    assert [u for _, u in d.calls] == [False] + [True]*5 and len({i for i, _ in d.calls}) == 1
    d.calls.clear()
    run(LossBoard(every=3600), 50)
    assert [u for _, u in d.calls] == [False, True]      # the first step and the last

def test_loss_board_survives_a_broken_picture(monkeypatch):
    d = Display(monkeypatch)
    with warnings.catch_warnings(record=True) as w:
        warnings.simplefilter('always')
        b = run(LossBoard(every=0, images=lambda r: {'x': np.zeros(3)}), 4)
    assert 'could not draw' in str(w[0].message) and not d.calls and len(b.steps) == 4

def test_viewers_by_name_and_in_order(monkeypatch):
    v, m = vol(np.zeros((6, 6, 6))), vol(np.eye(6)[None].repeat(6, 0).astype(np.uint8))
    assert type(volume(v, m)).__name__ == 'NiiVue' and type(volume(v, m, 'k3d')).__name__ == 'Plot' and type(volume(v, m, 'slices')).__name__ == 'interactive'
    monkeypatch.setitem(sys.modules, 'ipyniivue', None)
    assert type(volume(v, m)).__name__ == 'Plot'
    monkeypatch.setitem(sys.modules, 'k3d', None)
    assert type(volume(v, m)).__name__ == 'interactive'
    monkeypatch.setitem(sys.modules, 'itkwidgets', None)
    for name, words in (('itk', r'xmodseg\[itk\].*network'), ('k3d', 'k3d>=2.16'), ('vtk', 'no such viewer')):
        with pytest.raises(XModSegError, match=words): volume(v, backend=name)

def test_niivue_gets_the_file_and_its_place():
    import nibabel
    v = vol(np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32))
    img = nibabel.Nifti1Image.from_bytes(gzip.decompress(view._nifti(v)))
    np.testing.assert_allclose(img.get_fdata(), v.data)
    np.testing.assert_allclose(img.affine, v.affine)
    viewer = volume(v, vol(np.ones((3, 4, 5), bool)), 'niivue')
    assert [x.url for x in viewer.volumes] == [None, None] and len(viewer.volumes) == 2

def test_niivue_hangs_and_colours_as_the_figures_do():
    v, m = vol(np.zeros((3, 4, 5), np.float32)), np.zeros((3, 4, 5), np.uint8)
    m[0], m[1] = 1, 4
    viewer = volume(v, vol(m), 'niivue', names=dict(liver=1, aorta=4))
    assert viewer.opts.is_radiological_convention and viewer.opts.sagittal_nose_left
    lut = np.array(viewer.volumes[1].colormap_label.lut).reshape(-1, 4)
    for row, organ in ((1, 'liver'), (4, 'aorta')): assert '#%02x%02x%02x' % tuple(lut[row, :3]) == ORGAN_COLOURS[organ] and lut[row, 3] == 255
    assert lut[0, 3] == 0
    import nibabel
    soft = volume(v, vol(m*.2), 'niivue').volumes[1]              # a probability: drawn where it is above one half
    assert (nibabel.Nifti1Image.from_bytes(gzip.decompress(soft.data)).get_fdata() == (m*.2 > .5)).all()

def test_slider_draws_every_slice():
    w = volume(vol(np.random.default_rng(0).normal(size=(3, 4, 5))), None, 'slices')
    for axis in range(3):
        for index in range(5): assert w.f(axis, index).axes[0].get_title() == f'slice {min(index, 2 + axis)}'

def test_importing_view_is_light():
    import subprocess
    code = "import sys, xmodseg.view; print([m for m in ('matplotlib', 'ipywidgets', 'IPython', 'k3d', 'ipyniivue') if m in sys.modules])"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout.strip() == '[]'

def test_a_mask_from_another_place_is_refused():
    from xmodseg.volume import Volume
    image, at = Volume(np.random.default_rng(0).normal(size=(6, 8, 10)).astype(np.float32), np.diag([1., 1, 1, 1])), np.eye(4)
    m = np.zeros((6, 8, 10), np.uint8); m[2:4] = 1
    at[0, 3] = 37.
    with pytest.raises(XModSegError, match='different places: found corners 37 mm apart'): ortho(image, Volume(m, at, 'label'))
    with pytest.raises(XModSegError, match='different places'): volume(image, Volume(m, np.diag([3., 3, 3, 1]), 'label'), 'slices')
    turned = Volume(m[::-1].copy(), np.array([[-1., 0, 0, 5], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), 'label')
    assert ortho(image, turned).axes and ortho(image, m).axes       # the same place in other words, and an array, which lies nowhere

def test_one_board_serves_several_runs():
    b = run(LossBoard(keep=4), 9)
    b = run(b, 3, lambda i: dict(other=2.))
    assert b.steps == [1, 2, 3] and list(b.curves) == ['other'] and b.stride == 1

@pytest.mark.parametrize('keep', [3, 5, 99])
def test_the_last_step_stays_whatever_is_kept(keep):
    for steps in (*range(1, 60), 500, 501): assert run(LossBoard(keep=keep), steps).steps[-1] == steps

def test_an_axis_that_is_none():
    for axis in (-1, 3):
        with pytest.raises(XModSegError, match='no such axis'): cut(np.zeros((3, 4, 5)), axis)

@pytest.mark.parametrize('data, kind', [(np.uint16([40000, 1]), 'f'), (np.int32([-40000, 1]), 'f'), (np.uint16([32767, 1]), 'i')])
def test_whole_numbers_do_not_wrap_in_the_viewer(data, kind):
    import nibabel
    img = nibabel.Nifti1Image.from_bytes(gzip.decompress(view._nifti(vol(np.tile(data, (2, 2, 1))))))
    assert img.get_data_dtype().kind == kind and (img.get_fdata()[0, 0] == data).all()

def test_the_k3d_surface_encloses_its_block():
    pytest.importorskip('k3d')
    m = np.zeros((6, 9, 12), np.uint8); m[1:3, 5:8, 2:10] = 1
    mesh, = volume(vol(np.zeros((6, 9, 12), np.float32)), vol(m), 'k3d').objects
    assert mesh.scalar_field.shape == (12, 9, 6) and (mesh.scalar_field == m.T).all()
    assert [float(v) for v in np.array(mesh.model_matrix).reshape(4, 4).diagonal()[:3]] == [6., 18., 36.]

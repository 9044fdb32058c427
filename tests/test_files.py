"Slices with an offset of their own, frames, torn slices, headers cut short: DICOM and NIfTI as they come."
import struct
import nibabel as nib, numpy as np
import pytest
from xmodseg.core import XModSegError
from xmodseg.files import _digest, read_volume


def refuses(*words, call):
    with pytest.raises(XModSegError) as e: call()
    assert all(w.lower() in str(e.value).lower() for w in words), str(e.value)
    assert e.value.found is not None and (e.value.needed is not None or e.value.fix)


def element(group, number, vr, value):
    value = value.encode() if isinstance(value, str) else value
    value += (b'\0' if vr in ('UI', 'OW') else b' ')*(len(value) % 2)
    size = struct.pack('<HI', 0, len(value)) if vr == 'OW' else struct.pack('<H', len(value))
    return struct.pack('<HH', group, number) + vr.encode() + size + value


def slice_file(path, a, z=0, n=1, slope='1', offset='0', frames=None, samples=1):
    "A DICOM file, tag by tag; `a` holds whole numbers from 0."
    ct, u = '1.2.840.10008.5.1.4.1.1.2', lambda v: struct.pack('<H', v)
    meta = element(2, 2, 'UI', ct) + element(2, 3, 'UI', f'1.2.3.{n}') + element(2, 16, 'UI', '1.2.840.10008.1.2.1')
    body = [(8, 22, 'UI', ct), (8, 24, 'UI', f'1.2.3.{n}'), (8, 96, 'CS', 'CT'), (32, 13, 'UI', '1.9'), (32, 14, 'UI', '1.2.3'), (32, 19, 'IS', str(n)),
        (32, 50, 'DS', f'-30\\-20\\{z}'), (32, 55, 'DS', '1\\0\\0\\0\\1\\0'), (40, 2, 'US', u(samples)), (40, 4, 'CS', 'RGB' if samples > 1 else 'MONOCHROME2')]
    if samples > 1: body.append((40, 6, 'US', u(0)))
    if frames: body.append((40, 8, 'IS', str(frames)))
    bits, kind = (8, '<u1') if samples > 1 else (16, '<u2')
    body += [(40, 16, 'US', u(a.shape[-2])), (40, 17, 'US', u(a.shape[-1])), (40, 48, 'DS', '1.5\\2'), (40, 256, 'US', u(bits)), (40, 257, 'US', u(bits)), (40, 258, 'US', u(bits - 1)), (40, 259, 'US', u(0))]
    if samples == 1: body += [(40, 4178, 'DS', offset), (40, 4179, 'DS', slope)]
    body.append((0x7fe0, 16, 'OW', np.repeat(a.ravel(), samples).astype(kind).tobytes()))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b'\0'*128 + b'DICM' + element(2, 0, 'UL', struct.pack('<I', len(meta))) + meta + b''.join(element(*e) for e in body))
    return path


def series(folder, names='{}.dcm', n=5, **each):
    "Slices 3 mm apart; a keyword is a function of the slice's number."
    for k in range(n): slice_file(folder/names.format(k), np.full((10, 12), 500 + k), z=3*k, n=k + 1, **{key: f(k) for key, f in each.items()})
    return folder


@pytest.mark.parametrize('slope, offset', [(lambda k: '1', lambda k: '0' if k == 0 else '-1024'), (lambda k: '1' if k == 0 else '0.3', lambda k: '0'), (lambda k: '1' if k == 0 else '200', lambda k: '0'), (lambda k: f'{.5 + .1*k:.1f}', lambda k: str(-100*k))])
def test_each_slice_has_its_own_slope_and_offset(tmp_path, slope, offset):
    v = read_volume(series(tmp_path/'d', slope=slope, offset=offset))
    want = [float(slope(k))*(500 + k) + float(offset(k)) for k in range(5)]
    assert v.shape == (12, 10, 5) and np.allclose(v.data, np.broadcast_to(want, v.shape), atol=1e-3)


def test_16_colour_is_still_colour(tmp_path):
    refuses('3 channels', 'grey', call=lambda: read_volume(series(tmp_path/'d', samples=lambda k: 3)))


def test_several_frames_in_one_file(tmp_path):
    slice_file(tmp_path/'d'/'a.dcm', np.arange(600).reshape(5, 10, 12), frames=5)
    refuses('several frames in one file', '5 frames', 'single-frame', 'a.dcm', call=lambda: read_volume(tmp_path/'d'))


@pytest.mark.parametrize('names', ['{}.dcm', '{}.IMA', 'IM05{}'])
@pytest.mark.parametrize('keep', [0, 200])
def test_01_the_last_slice_is_torn(tmp_path, names, keep):
    p = series(tmp_path/'d', names)/names.format(4)
    assert read_volume(tmp_path/'d').shape == (12, 10, 5)
    p.write_bytes(p.read_bytes()[:keep])
    refuses('unreadable DICOM files', p.name, call=lambda: read_volume(tmp_path/'d'))


def test_what_else_lies_beside_a_series(tmp_path):
    series(tmp_path/'d')
    (tmp_path/'d'/'._0.dcm').write_bytes(b'Mac OS X'); (tmp_path/'d'/'notes.txt').write_text('left out'); (tmp_path/'d'/'.DS_Store').touch()
    (tmp_path/'d'/'DICOMDIR').write_bytes(b'\0'*128 + b'DICM'); (tmp_path/'d'/'old').mkdir()
    assert read_volume(tmp_path/'d').shape == (12, 10, 5)


def test_01_a_header_of_nifti_2_cut_short(tmp_path):
    raw = nib.Nifti2Image(np.arange(60, dtype=np.int16).reshape(3, 4, 5), np.eye(4)).to_bytes()
    (tmp_path/'a.nii').write_bytes(raw)
    assert (read_volume(tmp_path/'a.nii').data.ravel() == np.arange(60)).all()
    for n in (400, 539): (tmp_path/'a.nii').write_bytes(raw[:n]); refuses('header is damaged', 'a.nii', call=lambda: read_volume(tmp_path/'a.nii'))


def test_digest_of_folders_and_headers(tmp_path):
    a, b = series(tmp_path/'a'), series(tmp_path/'b')
    assert _digest(a) == _digest(b) and len(_digest(a)) == 16
    slice_file(b/'4.dcm', np.full((10, 12), 9), z=12, n=5)
    assert _digest(a) != _digest(b)
    for n, raw in (('x', b'12'), ('y', b'34'), ('z', b'12')): (tmp_path/f'{n}.raw').write_bytes(raw); (tmp_path/f'{n}.mhd').write_text(f'DimSize = 1 1 1\nElementDataFile = {n}.raw\n')
    assert _digest(tmp_path/'x.mhd') == _digest(tmp_path/'z.mhd') != _digest(tmp_path/'y.mhd')
    (tmp_path/'x.raw').unlink(); (tmp_path/'y.raw').unlink()
    assert _digest(tmp_path/'x.mhd') != _digest(tmp_path/'y.mhd')                # nothing but headers is left

def slice_of(path, z, n, pixel='1.5\\2', turn='1\\0\\0\\0\\1\\0'):
    u, ct = lambda v: struct.pack('<H', v), '1.2.840.10008.5.1.4.1.1.2'
    meta = element(2, 2, 'UI', ct) + element(2, 3, 'UI', f'1.2.3.{n}') + element(2, 16, 'UI', '1.2.840.10008.1.2.1')
    body = [(8, 22, 'UI', ct), (8, 24, 'UI', f'1.2.3.{n}'), (8, 96, 'CS', 'CT'), (32, 13, 'UI', '1.9'), (32, 14, 'UI', '1.2.3'), (32, 19, 'IS', str(n)), (32, 50, 'DS', f'0\\0\\{z}'), (32, 55, 'DS', turn), (40, 2, 'US', u(1)), (40, 4, 'CS', 'MONOCHROME2'),
        (40, 16, 'US', u(10)), (40, 17, 'US', u(10)), (40, 48, 'DS', pixel), (40, 256, 'US', u(16)), (40, 257, 'US', u(16)), (40, 258, 'US', u(15)), (40, 259, 'US', u(0)), (0x7fe0, 16, 'OW', np.full((10, 10), n, '<u2').tobytes())]
    path.parent.mkdir(exist_ok=True); path.write_bytes(b'\0'*128 + b'DICM' + element(2, 0, 'UL', struct.pack('<I', len(meta))) + meta + b''.join(element(*e) for e in body))

@pytest.mark.parametrize('unit,n', [('micron', 1e3), ('meter', 1e-3), ('mm', 1.), ('unknown', 1.)])
def test_millimetres_whatever_the_header_counts_in(tmp_path, unit, n):
    im = nib.Nifti1Image(np.ones((4, 5, 6), np.int16), np.diag([-2*n, -1.5*n, 3*n, 1])); im.header.set_xyzt_units(unit); nib.save(im, tmp_path/'a.nii.gz')
    assert np.allclose(read_volume(tmp_path/'a.nii.gz').spacing, (2, 1.5, 3))

@pytest.mark.parametrize('odd,words', [(dict(pixel='0.75\\1'), 'pixels of several sizes'), (dict(turn='0.995\\0.0998\\0\\-0.0998\\0.995\\0'), 'not parallel')])
def test_91_a_slice_of_another_pixel_or_turn(tmp_path, odd, words):
    for k in range(5): slice_of(tmp_path/'d'/f'{k}.dcm', 3*k, k + 1, **(odd if k == 3 else {}))
    with pytest.raises(XModSegError, match=words): read_volume(tmp_path/'d')

@pytest.mark.parametrize('odd', [dict(z=7.5), dict(turn='0.995\\0.0998\\0\\-0.0998\\0.995\\0')])
def test_91_an_extra_slice_between_two_or_one_that_is_turned(tmp_path, odd):
    for k in range(5): slice_of(tmp_path/'d'/f'{k}.dcm', 3*k, k + 1)
    slice_of(tmp_path/'d'/'odd.dcm', **{'z': 15, 'n': 9, **odd})
    with pytest.raises(XModSegError, match='spacing varies|not parallel'): read_volume(tmp_path/'d')

"Checkpoints, the folder of a run, its log and its watches (chapter 04)."
import json, os, pickle, signal, subprocess, sys, time
from pathlib import Path
import numpy as np
import pytest
import torch
from xmodseg import run as module
from xmodseg.core import Bag, XModSegError
from xmodseg.run import Records, Run, leave, load_checkpoint, panels, progress, read_log, save_checkpoint, stoppable

def adam_state(seed=0):
    "A small net with a used Adam, and the kinds of plain values."
    torch.manual_seed(seed)
    net = torch.nn.Linear(3, 2); adam = torch.optim.Adam(net.parameters())
    net(torch.randn(4, 3)).square().sum().backward(); adam.step()
    return dict(net=dict(net.state_dict()), adam=adam.state_dict(), step=7, rng=torch.get_rng_state()[:64], nest=[(1, 'a', None), {2: True}], lr=.1 + .2)

def same(a, b):
    if isinstance(a, torch.Tensor): return torch.equal(a, b) and a.dtype == b.dtype
    if isinstance(a, dict): return type(b) is dict and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)): return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return a == b and type(a) is type(b)

# ---- checkpoints

def test_round_trip_keeps_types_keys_and_values(tmp_path):
    s = adam_state()
    save_checkpoint(tmp_path/'c.safetensors', s)
    assert same(s, load_checkpoint(tmp_path/'c.safetensors'))
    assert [p.name for p in tmp_path.iterdir()] == ['c.safetensors']

@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool])
def test_round_trip_of_every_kind_shared_sliced_strided_empty(tmp_path, dtype):
    t = torch.arange(24).reshape(4, 6).to(dtype)
    s = dict(a=t, same=t, slice=t[1:3, 1:], row=t[1], t=t.T, empty=t[:0], scalar=t[0, 1])
    save_checkpoint(tmp_path/'c.safetensors', s)
    assert same(s, load_checkpoint(tmp_path/'c.safetensors'))

def test_04_1_checksum_closed_form_and_every_byte():
    assert module._checksum(torch.tensor([1, 2**62, 2**62, 2**62, 2**62])) == 1     # runs over at 2**64
    assert module._checksum(torch.tensor([-1])) == 2**64 - 1
    assert module._checksum(torch.tensor([3, 1], dtype=torch.uint8)) == 3 + 256
    t = torch.randn(6)
    for at in range(24):
        v = t.clone(); v.view(torch.uint8)[at] ^= 1
        assert module._checksum(v) != module._checksum(t)

def test_every_flipped_byte_is_refused_or_harmless(tmp_path):
    s, f = adam_state(), tmp_path/'c.safetensors'
    save_checkpoint(f, s)
    data, refused = f.read_bytes(), 0
    for at in range(len(data)):
        bad = bytearray(data); bad[at] ^= 1 << at % 8
        f.write_bytes(bad)
        try: assert same(s, load_checkpoint(f)), f'silently wrong: byte {at}'
        except XModSegError: refused += 1
    assert refused > .9*len(data)

@pytest.mark.parametrize('cut', [0, 1, 8, 100, .5, -1])
def test_truncated_and_empty_files_are_refused_and_the_older_one_is_offered(tmp_path, cut):
    for k in (1, 2): save_checkpoint(tmp_path/f'checkpoint_0000000{k}.safetensors', adam_state())
    f = tmp_path/'checkpoint_00000002.safetensors'; data = f.read_bytes()
    f.write_bytes(data[:int(cut*len(data))] if isinstance(cut, float) else data[:cut])
    with pytest.raises(XModSegError, match='checkpoint_00000002.*delete it to go on from checkpoint_00000001'): load_checkpoint(f)

def test_wrong_kinds_are_refused(tmp_path):
    from safetensors.torch import save_file
    (tmp_path/'a.safetensors').write_text('hello')
    save_file(dict(w=torch.ones(2)), tmp_path/'b.safetensors')
    torch.save(dict(w=torch.ones(2)), tmp_path/'c.safetensors')
    for f in 'abc':
        with pytest.raises(XModSegError, match='damaged'): load_checkpoint(tmp_path/f'{f}.safetensors')
    with pytest.raises(XModSegError, match='found nothing'): load_checkpoint(tmp_path/'none')
    with pytest.raises(XModSegError, match='found a folder'): load_checkpoint(tmp_path)

def test_a_malicious_pickle_never_runs(tmp_path):
    class Trap:
        def __reduce__(self): return os.mkdir, (str(tmp_path/'caught'),)
    (tmp_path/'a.safetensors').write_bytes(pickle.dumps(Trap()))
    torch.save(Trap(), tmp_path/'b.safetensors')
    for f in 'ab':
        with pytest.raises(XModSegError, match='damaged'): load_checkpoint(tmp_path/f'{f}.safetensors')
    assert not (tmp_path/'caught').exists()

@pytest.mark.parametrize('value', [np.float32(1), np.int64(1), Path('x'), {1, 2}, lambda: 0, {(1, 2): 3}])
def test_what_is_not_data_is_never_written(tmp_path, value):
    with pytest.raises(XModSegError, match='plain values only'): save_checkpoint(tmp_path/'c.safetensors', dict(x=value))
    assert not list(tmp_path.iterdir())

def test_a_later_layout_is_refused_with_its_version(tmp_path, monkeypatch):
    monkeypatch.setattr(module, 'SCHEMA', '2'); monkeypatch.setattr(module, 'load_checkpoint', lambda p: None)
    save_checkpoint(tmp_path/'c.safetensors', dict(x=1))
    monkeypatch.undo()
    with pytest.raises(XModSegError, match='another layout.*found 2, needed 1'): load_checkpoint(tmp_path/'c.safetensors')

@pytest.mark.skipif(os.name != 'posix', reason='limits of the system')
def test_a_full_disk_leaves_the_old_checkpoint(tmp_path):
    f = tmp_path/'c.safetensors'
    save_checkpoint(f, dict(x=torch.zeros(10)))
    r = subprocess.run([sys.executable, '-c', f'''
import resource, signal, torch
from xmodseg.run import save_checkpoint
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
save_checkpoint({str(f)!r}, dict(x=torch.ones(200_000)))'''], capture_output=True, text=True)
    assert 'the checkpoint cannot be written' in r.stderr, r.stderr
    assert load_checkpoint(f)['x'].sum() == 0 and [p.name for p in tmp_path.iterdir()] == ['c.safetensors']

@pytest.mark.skipif(os.name != 'posix', reason='SIGKILL')
def test_killed_while_saving_the_folder_still_loads_20_of_20(tmp_path):
    "One process is stopped and restarted in the middle of its saves; at the end it is killed for real. What lies there at each moment must load."
    f = tmp_path/'c.safetensors'
    p = subprocess.Popen([sys.executable, '-c', f'''
import torch
from xmodseg.run import save_checkpoint
k = 0
while True:
    k += 1
    save_checkpoint({str(f)!r}, dict(k=k, w=torch.full((400_000,), float(k))))'''])
    try:
        while not f.exists(): assert p.poll() is None; time.sleep(.05)
        rng, seen, part = np.random.default_rng(0), [], 0
        for _ in range(20):
            time.sleep(rng.uniform(.01, .05))
            os.kill(p.pid, signal.SIGSTOP)
            s = load_checkpoint(f)
            assert bool((s['w'] == s['k']).all())
            seen.append(s['k']); part += len(list(tmp_path.glob('.*.part')))
            os.kill(p.pid, signal.SIGCONT)
    finally: p.kill(); p.wait()
    assert seen == sorted(seen) and seen[-1] > seen[0] and part > 0      # some moments were in the middle of a write
    s = load_checkpoint(f)
    assert bool((s['w'] == s['k']).all())

# ---- the folder

def test_two_checkpoints_are_kept_and_the_newest_is_by_step_not_by_clock(tmp_path):
    with Run(tmp_path/'r') as r:
        for k in (5, 100, 20): r.save(k, dict(step=k))
        assert [p.name[11:19] for p in r.checkpoints()] == ['00000020', '00000100']
        os.utime(r.checkpoints()[0], (2e9, 2e9))
        assert r.load()['step'] == 100

def test_one_trainer_per_folder_and_the_lock_goes_with_its_owner(tmp_path):
    code = f"from xmodseg.run import Run; r = Run({str(tmp_path)!r}); print('ready', flush=True); input()"
    p = subprocess.Popen([sys.executable, '-c', code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert p.stdout.readline() == 'ready\n'
        with pytest.raises(XModSegError, match='another process trains into this folder'): Run(tmp_path)
    finally: p.kill(); p.wait()
    Run(tmp_path).close()

def test_an_existing_run_is_not_overwritten_and_the_refusal_lets_go_of_the_lock(tmp_path):
    with Run(tmp_path, resume=False) as r: r.save(3, dict(step=3))
    with pytest.raises(XModSegError, match='already holds a run.*checkpoint_00000003') as e: Run(tmp_path, resume=False)
    with Run(tmp_path) as r: assert r.load() == dict(step=3)
    assert e.value.fix

@pytest.mark.parametrize('where', ['file', 'below a file', '/proc/xmodseg'])
def test_a_folder_that_cannot_be_written_is_refused(tmp_path, where):
    (tmp_path/'f').write_text('')
    out = dict(zip(('file', 'below a file'), (tmp_path/'f', tmp_path/'f'/'run'))).get(where, where)
    with pytest.raises(XModSegError, match='output folder cannot be written'): Run(out)

def test_what_killed_writes_left_behind_is_cleared(tmp_path):
    (tmp_path/'.checkpoint_00000005.safetensors.77.part').write_bytes(b'half')
    Run(tmp_path).close()
    assert not list(tmp_path.glob('.*'))

def test_log_is_cut_back_to_the_checkpoint_and_is_plain_json(tmp_path):
    with Run(tmp_path) as r:
        r.log(dict(step=2, a=.5)); r.save(3, dict(step=3)); r.log(dict(step=4, a=float('nan')))
        assert [json.loads(l, parse_constant=pytest.fail) for l in (tmp_path/'metrics.jsonl').read_text().splitlines()][1] == dict(step=4, a=None)
        with open(tmp_path/'metrics.jsonl', 'a') as f: f.write('{"step": 6, "a"')
        assert [l['step'] for l in read_log(tmp_path)] == [2, 4]
        r.load()
        assert read_log(tmp_path) == [dict(step=2, a=.5)]

def test_log_of_a_run_killed_before_its_first_checkpoint_starts_anew(tmp_path):
    with Run(tmp_path) as r: r.log(dict(step=2, a=1.))
    with Run(tmp_path) as r: assert r.load() is None
    assert read_log(tmp_path) == [] and read_log(tmp_path/'none') == []

def test_tensorboard_is_written_where_installed_and_not_missed_where_not(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'torch.utils.tensorboard', None)
    with Run(tmp_path/'without') as r: r.log(dict(step=1, a=1.))
    assert not (tmp_path/'without'/'tensorboard').exists()
    monkeypatch.undo()
    pytest.importorskip('tensorboard')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    with Run(tmp_path/'with') as r:
        for k in (1, 2): r.log(dict(step=k, a=k/2))
    events = EventAccumulator(str(tmp_path/'with'/'tensorboard')); events.Reload()
    assert [(e.step, e.value) for e in events.Scalars('a')] == [(1, .5), (2, 1.)]

# ---- signals and watches

def test_signals_become_notes_and_then_exit_codes():
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    with stoppable() as asked:
        os.kill(os.getpid(), signal.SIGINT); os.kill(os.getpid(), signal.SIGTERM); time.sleep(.01)
    assert sorted(asked) == [signal.SIGINT, signal.SIGTERM]
    assert before == [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(SystemExit) as e: leave(signal.SIGTERM)
    assert e.value.code == 143
    with pytest.raises(KeyboardInterrupt): leave(signal.SIGINT)

def test_04_3_time_left_counts_from_this_start(capsys):
    progress.last = -1e9
    progress(Bag(step=5500, start=4000, steps=10000, log=dict(cyc=.25), seconds=300.))
    assert capsys.readouterr().out == 'step 5500/10000  cyc 0.250  15.0 min to go\n'
    progress(Bag(step=5600, start=4000, steps=10000, log={}, seconds=320.))
    assert capsys.readouterr().out == ''
    progress(Bag(step=10000, start=4000, steps=10000, log={}, seconds=1200.))
    assert 'step 10000/10000' in capsys.readouterr().out

def test_panels_are_drawn_when_due_and_a_bad_drawing_only_warns(tmp_path):
    class Figure:
        def __init__(self, run): self.text = str(run.step)
        def savefig(self, path): Path(path).write_text(self.text)
    watch = panels(Figure, every=100)
    for k in (50, 90, 110, 150, 210, 250): watch(Bag(step=k, start=0, steps=250, out=tmp_path))
    assert {p.name: p.read_text() for p in (tmp_path/'panels').iterdir()} == {f'step_{k:08d}.png': str(k) for k in (110, 210, 250)}
    watch = panels(Figure, every=100)        # after a resume at 150
    for k in (160, 200): watch(Bag(step=k, start=150, steps=300, out=tmp_path))
    assert (tmp_path/'panels'/'step_00000200.png').exists() and not (tmp_path/'panels'/'step_00000160.png').exists()
    with pytest.warns(UserWarning, match='ZeroDivisionError'): panels(lambda run: 1/0, every=1)(Bag(step=1, start=0, steps=2, out=tmp_path))
    panels(Figure, every=1)(Bag(step=1, start=0, steps=2, out=None))

# ---- the rows of an experiment

def rows_of(out, seed=0, n=40, resume=True, size='tiny', **settings): return Records(out, seed, size, lambda row: 0 if row == 'bare' else n, resume, **settings)

def test_04_4_a_second_start_finds_the_rows_and_writes_the_common_form(tmp_path):
    r = rows_of(tmp_path/'new'/'deep', fold=1, data=None)
    assert r.done('M1') is None and r.all() == {}
    r.keep('M1', dict(y_l=dict(dice=.5)), 90., doubt=.25); r.keep('bare', Bag(y_l=dict(dice=.25)), 0.)
    assert not list((tmp_path/'new').rglob('*.part'))
    again = rows_of(tmp_path/'new'/'deep', fold=1, data=None)
    assert again.done('M1') == dict(row='M1', seed=0, size='tiny', fold=1, data=None, steps=40, minutes=1.5, scores=dict(y_l=dict(dice=.5)), doubt=.25)
    assert list(again.all()) == ['M1', 'bare'] and again.all()['bare']['steps'] == 0
    told = again.write(method='toy', steps=40, command='c', gap_closed=dict(M1=.5))
    assert told == json.loads((tmp_path/'new'/'deep'/'metrics.json').read_text(encoding='utf-8'))
    assert set(told) == {'method', 'size', 'seed', 'steps', 'hardware', 'minutes', 'command', 'rows', 'gap_closed'}
    assert (told['seed'], told['size'], told['minutes'], told['rows']) == (0, 'tiny', 1.5, dict(M1=dict(y_l=dict(dice=.5)), bare=dict(y_l=dict(dice=.25))))
    assert again.write(method='toy', rows={}, minutes=7.)['rows'] == {} and json.loads((tmp_path/'new'/'deep'/'metrics.json').read_text())['minutes'] == 7.

@pytest.mark.parametrize('change, words', [(dict(seed=1), 'found seed 0, needed seed 1'), (dict(n=80), 'found steps 40, needed steps 80'), (dict(size='full'), "found size 'tiny', needed size 'full'"),
    (dict(fold=2), 'found fold 0, needed fold 2'), (dict(data='scans'), "found data None, needed data 'scans'"), (dict(seed=1, fold=2), 'found seed 0, fold 0, needed seed 1, fold 2')])
def test_04_4_a_row_of_other_settings_is_refused_before_anything_is_trained(tmp_path, change, words):
    rows_of(tmp_path, fold=0, data=None).keep('M1', {}, 0.)
    with pytest.raises(XModSegError, match=f'other settings: {words}.*choose another `out`') as e: rows_of(tmp_path, **{**dict(fold=0, data=None), **change})
    assert 'M1' in str(e.value.file)
    rows_of(tmp_path, fold=0, data=None)

def test_04_4_a_row_that_appears_later_is_refused_too(tmp_path):
    mine = rows_of(tmp_path)
    rows_of(tmp_path, seed=1).keep('M2', {}, 0.)
    for ask in (lambda: mine.done('M2'), mine.all, mine.write):
        with pytest.raises(XModSegError, match='found seed 1, needed seed 0'): ask()
    assert mine.done('M1') is None and not (tmp_path/'metrics.json').exists()

def test_older_records_name_fewer_settings_and_are_read(tmp_path):
    (tmp_path/'M1').mkdir()
    old = dict(row='M1', seed=3, steps=40, minutes=2., scores=dict(y_l=dict(dice=.5)))
    (tmp_path/'M1'/'scores.json').write_text(json.dumps(old))
    assert rows_of(tmp_path, seed=3, fold=1).done('M1') == old
    for bad in (dict(seed=4), dict(seed=3, n=41)):
        with pytest.raises(XModSegError, match='other settings'): rows_of(tmp_path, **bad)

@pytest.mark.parametrize('text', ['', '{"row": "M1", "seed": 0, "sco', '[]', '{}', 'null', b'\xff\xfe{'])
def test_half_a_record_is_a_row_to_be_scored_again(tmp_path, text):
    (tmp_path/'M1').mkdir()
    (tmp_path/'M1'/'scores.json').write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.warns(UserWarning, match='M1.*not scored'): r = rows_of(tmp_path)
    r.keep('M1', dict(a=1), 0.)
    assert r.done('M1')['scores'] == dict(a=1)

def test_without_resume_only_what_was_kept_now_is_known(tmp_path):
    rows_of(tmp_path).keep('M1', {}, 0.)
    r = rows_of(tmp_path, seed=1, resume=False)
    assert r.done('M1') is None and r.all() == {}
    r.keep('M2', dict(a=1), 60.)
    assert list(r.all()) == ['M2'] and r.done('M2')['seed'] == 1 and r.write()['minutes'] == 1.

def test_settings_are_compared_as_they_are_read(tmp_path):
    how = dict(hu=(-400, 1100), data=Path('scans'), share=.1 + .2)
    rows_of(tmp_path, **how).keep('M1', {}, 0.)
    assert rows_of(tmp_path, **how).done('M1')['hu'] == [-400, 1100]

@pytest.mark.parametrize('what', ['scores', 'metrics', 'folder'])
def test_what_cannot_be_written_is_named_and_the_old_file_stands(tmp_path, monkeypatch, what):
    r = rows_of(tmp_path/'e'); r.keep('M1', dict(a=1), 0.); r.write(n=1)
    def full(f, g): raise OSError(28, 'No space left on device')
    if what != 'folder': monkeypatch.setattr(os, 'replace', full)
    (tmp_path/'file').write_text('')
    call = dict(scores=lambda: r.keep('M1', dict(a=2), 0.), metrics=lambda: r.write(n=2), folder=lambda: rows_of(tmp_path/'file'/'below'))[what]
    with pytest.raises(XModSegError, match='cannot be written.*choose another `out`'): call()
    assert r.done('M1')['scores'] == dict(a=1) and json.loads((tmp_path/'e'/'metrics.json').read_text())['n'] == 1 and not list(tmp_path.rglob('*.part'))

def test_scores_of_numpy_are_kept(tmp_path):
    r = Records(tmp_path, 0, 'tiny', lambda row: 1); r.keep('M1', dict(y=dict(dice=np.float32(.5))), 1.); assert r.done('M1')['scores'] == dict(y=dict(dice=.5))

def test_a_picture_watch_serves_two_runs(tmp_path):
    class Fig:
        def savefig(self, path): path.write_text('x')
    watch = panels(lambda run: Fig(), every=10)
    for name in ('a', 'b'):
        (tmp_path/name).mkdir()
        for step in range(1, 41): watch(Bag(step=step, start=0, steps=40, out=tmp_path/name, log={}, seconds=1.))
    assert [p.name for p in sorted((tmp_path/'b'/'panels').iterdir())] == [p.name for p in sorted((tmp_path/'a'/'panels').iterdir())] == [f'step_{k:08d}.png' for k in (10, 20, 30, 40)]

@pytest.mark.skipif(not Path('/dev/full').exists(), reason='no full device')
def test_a_full_disk_at_a_line_of_the_log_is_said(tmp_path):
    with Run(tmp_path/'r') as r:
        (tmp_path/'r'/'metrics.jsonl').symlink_to('/dev/full')
        with pytest.raises(XModSegError, match='the log cannot be written'): r.log(dict(step=1, a=1.))

def test_records_take_numbers_of_numpy_and_refuse_a_file_in_their_way(tmp_path):
    r = Records(tmp_path, 0, 'tiny', lambda row: 1)
    r.keep('a', dict(y=dict(dice=np.float32(.5))), 1.)
    assert r.write(gap=np.float32(.25))['gap'] == .25 and json.loads((tmp_path/'metrics.json').read_text())['gap'] == .25
    (tmp_path/'b').write_text('')
    with pytest.raises(XModSegError, match='the row cannot be written'): r.keep('b', {}, 1.)

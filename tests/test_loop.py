"The one loop (chapter 09): steps, guard, resume, precision, processes. The real CycleGAN with its pools is the game that is killed."
import copy, json, multiprocessing, os, signal, socket, subprocess, sys
import pytest
import torch
from torch import nn
from xmodseg import loop as module
from xmodseg import run as run_module
from xmodseg.core import Bag, XModSegError
from xmodseg.game import CycleGAN, Method, Supervised
from xmodseg.loop import Loop, Player, fit, linear_decay, moves, put_back
from xmodseg.run import load_checkpoint, read_log, save_checkpoint

class Data:
    "data[step] from the step alone; steps in `poison` hold a NaN, `act` runs when a step's batch is asked for."
    def __init__(self, batch=2, poison=(), act=None, fingerprint='a'): self.batch, self.poison, self.act, self.fingerprint = batch, poison, act or {}, fingerprint
    def __getitem__(self, k):
        if k in self.act: self.act[k]()
        g = torch.Generator().manual_seed(k)
        x_l, x_h = torch.rand(2, self.batch, 1, 16, 16, generator=g)*2 - 1
        if k in self.poison: x_h[0, 0, 2, 2] = float('nan')
        return Bag(x_l=x_l, x_h=x_h, y_h=(x_h > 0).float(), name=[f'case{k}.{i}' for i in range(self.batch)])

def gan(seed=0):
    torch.manual_seed(seed)
    m = CycleGAN(2, 0, 1, lr=1e-3)
    m.pool_l.size = m.pool_h.size = 3        # full after two steps: from then on it draws random numbers
    return m

def segmentor(seed=0, lr=1e-2):
    torch.manual_seed(seed)
    return Supervised(nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 1, 3, padding=1), nn.Sigmoid()), lr=lr)

def weights(m): return torch.cat([p.detach().flatten() for p in m.parameters()])
def same(a, b):
    if isinstance(a, torch.Tensor): return torch.equal(a, b) and a.dtype == b.dtype
    if isinstance(a, dict): return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)): return len(a) == len(b) and all(map(same, a, b))
    return a == b
quiet = dict(watch=(), device='cpu')

# ---- one step

def test_09_1_player_counts_shared_nets_once():
    net = nn.Linear(2, 2)
    assert len(Player('p', [net, nn.Sequential(net)], None).params()) == 2

def test_09_2_terms_reach_their_own_player_alone_and_paths_are_painted_once():
    m, calls = gan(), []
    m.G_l2h.register_forward_hook(lambda *a: calls.append(1))
    for player, terms in moves(m, Data()[0]):
        open_ = {n for n, p in m.named_parameters() if p.requires_grad}
        assert {n.split('.')[0] for n in open_} == {'G': {'G_l2h', 'G_h2l'}, 'D_l': {'D_l'}, 'D_h': {'D_h'}}[player.name]
        sum(terms.values()).backward()
        assert {n for n, p in m.named_parameters() if p.grad is not None} == open_
        m.zero_grad(set_to_none=True)
    assert len(calls) == 2          # x_l2h and x_h2l2h, once each for three players

def test_09_2_the_first_player_sees_live_paths_and_the_others_a_detached_copy():
    m, seen = gan(), []
    look = lambda q: Player(q.name, q.nets, lambda b, p: (seen.append([v.requires_grad for v in p.values()]), q.terms(b, p))[1])
    players = [look(q) for q in m.players()]; m.players = lambda: players
    list(moves(m, Data()[0]))
    assert seen == [[True]*4, [False]*4, [False]*4]

def test_09_2_gradients_are_taken_before_anyone_moves():
    "Each player's Adam gets the gradient at the common position: moved by hand from there, the nets agree."
    m, b = gan(), Data()[0]; before = copy.deepcopy(m)
    l = Loop(m, device='cpu'); l.step(0, b)
    for i, player in enumerate(before.players()):
        fresh = copy.deepcopy(before); player = fresh.players()[i]
        p = fresh.paths(b); total = fresh.total(player.terms(b, p if i == 0 else p.detach()))
        opt = torch.optim.Adam(player.params(), player.lr, player.betas)
        for q, g in zip(player.params(), torch.autograd.grad(total, player.params())): q.grad = g
        opt.step()
        for q, w in zip(player.params(), l.players[i].params()): torch.testing.assert_close(q, w, rtol=1e-4, atol=1e-6)

def test_step_order_regression_D_before_G_backward_fails_on_this_torch_and_cannot_happen_in_the_loop():
    m, b = gan(), Data()[0]
    opt = torch.optim.Adam(m.D_h.parameters())
    wish = (m.D_h(m.G_l2h(b.x_l)) - 1).square().mean()
    m.D_h(b.x_h).square().mean().backward(); opt.step()
    with pytest.raises(RuntimeError, match='inplace'): wish.backward()
    moved = []
    class Spy(CycleGAN):
        def players(self):
            spy = lambda f: lambda b, p: (moved.append(weights(self).clone()), f(b, p))[1]
            return [Player(q.name, q.nets, spy(q.terms), q.lr) for q in super().players()]
    torch.manual_seed(0); l = Loop(Spy(2, 0, 1), device='cpu'); l.step(0, b)
    assert len(moved) == 3 and all(torch.equal(w, moved[0]) for w in moved) and not torch.equal(weights(l.game), moved[0])

def test_two_players_with_one_term_name_are_refused():
    m = gan(); one = m.players()[1]
    m.players = lambda: [one, one]
    with pytest.raises(XModSegError, match='name a term alike'): list(moves(m, Data()[0]))

class Half(Supervised):
    "Its second net plays with nobody."
    def __init__(self):
        super().__init__(nn.Conv2d(1, 1, 1)); self.frozen = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1), nn.Dropout())
    def paths(self, b): return Bag(y=self.net(self.frozen(b.x_h)).sigmoid())

def test_frozen_nets_keep_weights_buffers_and_mode_and_still_pass_gradients():
    m = Half(); before = copy.deepcopy(m.frozen.state_dict()); m.frozen[0].weight.requires_grad_(False)
    modes = []
    fit(m, Data(), 3, log_every=1, device='cpu', watch=(lambda run: modes.append(run.method.training),))
    assert same(before, m.frozen.state_dict()) and modes == [False]*3
    assert not m.frozen[0].weight.requires_grad and m.net.weight.requires_grad and not m.training
    with put_back(m):
        module._to_work(m, m.players())
        assert m.net.training and not m.frozen.training and not m.frozen[1].training

def test_09_3_linear_decay_values_and_its_use():
    f = linear_decay(100, 50)
    assert [f(k) for k in (0, 99, 100, 125, 149, 150, 200)] == [1, 1, 1, .5, .02, 0, 0]
    assert linear_decay(2, 0)(1) == 1 and linear_decay(2, 0)(2) == 0
    m, path = segmentor(), []
    fit(m, Data(), 6, schedule=linear_decay(2, 2), log_every=1, device='cpu', watch=(lambda run: path.append(weights(run.method)),))
    moved = [float((b - a).norm()) for a, b in zip(path, path[1:])]
    assert min(moved[:3]) > 0 and moved[3:] == [0, 0]      # steps 1, 2, 3 at 1, 1, 1/2; 4 and 5 at 0

# ---- parts, precision, processes

def test_09_4_two_pieces_equal_one_batch():
    a, b = segmentor(), segmentor()
    ra, rb = (fit(m, Data(4), 4, accumulate=n, log_every=1, **quiet) for m, n in ((a, 1), (b, 2)))
    torch.testing.assert_close(weights(a), weights(b), rtol=1e-4, atol=1e-6)
    assert [l['seg'] for l in ra.log] == pytest.approx([l['seg'] for l in rb.log], rel=1e-5)
    gs = []
    for m, n in ((segmentor(), 1), (segmentor(), 2)):            # Adam would not show a factor
        l = Loop(m, device='cpu'); module._feel(l.acc, m, Data(4)[0], n); gs.append(torch.cat([p.grad.flatten() for p in m.parameters()]))
    torch.testing.assert_close(*gs)
    with pytest.raises(XModSegError, match='batch 4.*multiple of 3'): fit(a, Data(4), 1, accumulate=3, **quiet)

def test_bf16_runs_on_a_cpu_with_the_loss_within_2_percent():
    a, b = (fit(segmentor(), Data(4), 6, precision=p, log_every=1, **quiet).log for p in ('no', 'bf16'))
    assert [l['seg'] for l in b] == pytest.approx([l['seg'] for l in a], rel=.02) and a != b

def test_precision_and_device_are_refused_when_they_cannot_be():
    with pytest.raises(XModSegError, match="found fp8"): fit(segmentor(), Data(), 1, precision='fp8', **quiet)
    with pytest.raises(XModSegError, match="bf16"): fit(segmentor(), Data(), 1, precision='fp16', **quiet)
    if not torch.cuda.is_available():
        with pytest.raises(XModSegError, match='device'): fit(segmentor(), Data(), 1, device='cuda', watch=())

def scaled(scale):
    l = Loop(gan(), device='cpu'); l.acc.scaler = torch.amp.GradScaler('cpu', init_scale=scale)
    return l

def test_scaler_unscales_every_player_and_changes_once_per_step():
    plain, l = Loop(gan(), device='cpu'), scaled(2.**12)
    assert plain.step(0, Data()[0])[1] is None and l.step(0, Data()[0])[1] is None
    for a, b in zip(plain.opts, l.opts):                         # Adam itself would not show a factor; its memories do
        for i, v in a.state_dict()['state'].items(): torch.testing.assert_close(b.state_dict()['state'][i]['exp_avg'], v['exp_avg'], rtol=1e-2, atol=1e-4)
    l = scaled(2.**127); before = weights(l.game).clone()
    assert l.step(0, Data()[0])[1] is None                       # an overflow is routine ...
    assert torch.equal(weights(l.game), before) and l.acc.scaler.get_scale() == 2.**126     # ... nobody moved, and the scale halved once
    assert scaled(2.**12).step(0, Data(poison=(0,))[0])[1] == 'adv'                          # a loss that is not finite is not

@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA')
@pytest.mark.parametrize('precision', ['no', 'bf16', 'fp16'])
def test_on_a_gpu_after_a_cpu_run(precision):
    cpu = fit(segmentor(), Data(4), 6, log_every=1, **quiet).log
    gpu = fit(m := segmentor(), Data(4), 6, precision=precision, log_every=1, watch=(), device='cuda').log
    assert next(m.parameters()).is_cuda and [l['seg'] for l in gpu] == pytest.approx([l['seg'] for l in cpu], rel=.02)

def test_loader_processes_change_nothing():
    a, b = gan(), gan()
    fit(a, Data(), 4, **quiet); fit(b, Data(), 4, workers=2, **quiet)
    assert same(a.state_dict(), b.state_dict())

script = '''
import sys, torch
sys.path.insert(0, {tests!r})
torch.set_num_threads(1)
from test_loop import Data, fit, gan, quiet, segmentor
g, s = gan(), segmentor(int(__import__('os').environ.get('RANK', 0)))     # other weights in the second process: the first one's must win
g.pool_l.size = g.pool_h.size = 0
a = fit(g, Data(4), 4, out={out!r} + '/g', log_every=1, save_every=2, **quiet)
b = fit(s, Data(4), 4, accumulate=2, log_every=1, **quiet)
b2 = fit(g, Data(4), 6, out={out!r} + '/g', log_every=1, **quiet)
from accelerate import PartialState
if PartialState().is_main_process:
    x = Data(4)[99]
    torch.save(dict(n=PartialState().num_processes, s=torch.cat([p.detach().flatten() for p in s.parameters()]), g=[g.G_l2h(x.x_l).detach(), g.D_h(x.x_h).detach()], log=[*a.log, *b.log, *b2.log]), {out!r} + '/end.pt')
PartialState().wait_for_everyone()
PartialState().destroy_process_group()     # together, and in order
'''

def test_two_processes_equal_one(tmp_path):
    "torchrun with two CPU processes (accelerate launch starts only one on a CPU): weights, outputs and log as with one, on the same global batch; also after a resume."
    ends = []
    for n in (1, 2):
        out = tmp_path/str(n); out.mkdir(); (out/'train.py').write_text(script.format(tests=os.path.dirname(__file__), out=str(out)))
        with socket.socket() as s: s.bind(('127.0.0.1', 0)); port = s.getsockname()[1]
        launch = ['-m', 'torch.distributed.run', '--nproc_per_node', '2', '--master_addr', '127.0.0.1', '--master_port', str(port)]
        r = subprocess.run([sys.executable, *(launch if n == 2 else []), str(out/'train.py')], capture_output=True, text=True, timeout=300, env={**os.environ, 'OMP_NUM_THREADS': '1', 'GLOO_SOCKET_IFNAME': 'lo'})
        assert r.returncode == 0, r.stderr[-3000:]
        ends.append(torch.load(out/'end.pt'))
    a, b = ends
    assert (a['n'], b['n']) == (1, 2)
    torch.testing.assert_close(b['s'], a['s'], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(b['g'], a['g'], rtol=1e-3, atol=1e-3)
    for p, q in zip(a['log'], b['log'], strict=True): assert q == pytest.approx(p, rel=1e-3)
    assert [l['step'] for l in read_log(tmp_path/'2'/'g')] == [1, 2, 3, 4, 5, 6]

# ---- the guard

def test_a_bad_batch_changes_no_weight_no_memory_and_names_case_and_term(capsys):
    m = gan(); l = Loop(m, device='cpu'); l.step(0, Data()[0])
    before = copy.deepcopy(dict(w=dict(m.named_parameters()), opts=[o.state_dict() for o in l.opts]))
    assert l.step(1, Data(poison=(1,))[1])[1] == 'adv'
    assert same(before, dict(w=dict(m.named_parameters()), opts=[o.state_dict() for o in l.opts]))
    fit(segmentor(), Data(poison=(1,)), 3, **quiet)
    assert capsys.readouterr().out == 'step 1: seg is not finite for case1.0, case1.1; no weight was changed\n'

def test_a_bad_batch_leaves_no_trace_in_running_means_and_pools():
    m = gan(); fit(m, Data(), 2, **quiet); kept = copy.deepcopy(m.state_dict())
    l = Loop(m, device='cpu'); assert l.step(3, Data(poison=(3,))[3])[1] == 'adv'
    assert same(dict(m.state_dict()), dict(kept)) and l.step(4, Data()[4])[1] is None
    normed = Supervised(nn.Sequential(nn.BatchNorm2d(1), nn.Conv2d(1, 1, 1), nn.Sigmoid())); fit(normed, Data(poison=(1,)), 3, **quiet)
    assert int(normed.net[0].num_batches_tracked) == 2 and bool(torch.isfinite(normed.net[0].running_var).all())

def test_moved_is_called_once_for_each_step_that_was_taken():
    for pieces in (1, 2):
        m, calls = segmentor(), []; m.moved = lambda: calls.append(weights(m).clone())
        fit(m, Data(poison=(1,)), 4, accumulate=pieces, **quiet)
        assert len(calls) == 3 and torch.equal(calls[-1], weights(m)) and not torch.equal(calls[0], calls[1])   # after the step, not before

def test_a_term_of_weight_0_is_nobodys_fault():
    m = gan(); pull = m.pull; m.pull = lambda b, p: {**pull(b, p), 'watched': p.x_l2h.mean()*float('nan')}
    assert Loop(m, device='cpu').step(0, Data()[0])[1] == 'watched'
    m.weights['watched'] = 0.; log, bad = Loop(m, device='cpu').step(0, Data()[0])
    assert bad is None and bool(torch.isnan(log['watched'])) and bool(torch.isfinite(weights(m)).all())

def test_fewer_steps_than_are_done_are_refused(tmp_path):
    fit(segmentor(), Data(), 6, tmp_path, **quiet); assert fit(segmentor(), Data(), 6, tmp_path, **quiet).step == 6
    with pytest.raises(XModSegError, match='found 6, needed at most 4'): fit(segmentor(), Data(), 4, tmp_path, **quiet)

def test_a_gradient_that_is_not_finite_is_seen_although_the_loss_is():
    class Root(Method):
        def __init__(self): super().__init__(); self.w = nn.Linear(1, 1, bias=False); nn.init.zeros_(self.w.weight)
        def paths(self, b): return Bag(v=self.w.weight.sum())
        def players(self): return [Player('w', [self.w], lambda b, p: dict(root=p.v.square().sqrt()))]
    m = Root()
    assert Loop(m, device='cpu').step(0, Data()[0])[1] == 'gradient of w' and not m.w.weight.any()

def test_three_in_a_row_stop_the_run_and_the_last_good_checkpoint_stays(tmp_path):
    with pytest.raises(XModSegError, match='case9.0, case9.1: 3 batches in a row.*seg at step 9'):
        fit(segmentor(), Data(poison=(3, 4, 7, 8, 9)), 20, tmp_path, save_every=5, log_every=1, **quiet)
    files = sorted(tmp_path.glob('checkpoint*'))
    assert [f.name for f in files] == ['checkpoint_00000005.safetensors'] and load_checkpoint(files[0])['step'] == 5
    for l in (tmp_path/'metrics.jsonl').read_text().splitlines(): json.loads(l, parse_constant=pytest.fail)
    assert read_log(tmp_path)[3]['seg'] is None
    end = fit(m := segmentor(), Data(), 10, tmp_path, **quiet)          # the case is mended: it goes on from 5
    assert end.step == 10 and bool(torch.isfinite(weights(m)).all())

def test_out_of_memory_is_said_in_words():
    class Huge(Supervised):
        def paths(self, b): return Bag(y=torch.empty(2**60))
    with pytest.raises(XModSegError, match='out of memory.*accumulate=2'): fit(Huge(nn.Conv2d(1, 1, 1)), Data(), 1, **quiet)

def test_watches_change_nothing_and_see_everything(tmp_path):
    seen = []
    def nosy(run): torch.rand(7); seen.append(run); assert not run.method.training
    a, b = gan(), gan()
    fit(a, Data(), 6, **quiet); fit(b, Data(), 6, tmp_path, log_every=2, device='cpu', watch=(nosy,))
    assert same(a.state_dict(), b.state_dict())
    assert [r.step for r in seen] == [2, 4, 6] and seen[0].out == tmp_path and set(seen[0].log) == {'adv', 'cyc', 'D_l', 'D_h'}
    assert seen[1].batch.name == Data()[3].name and seen[0].steps == 6 and seen[0].start == 0

# ---- stopped and taken up

def train(out, act=None, steps=12, patch=None):
    torch.set_num_threads(1)
    if patch: patch()
    fit(gan(seed=os.getpid()) if any(out.glob('checkpoint*')) else gan(), Data(act=act), steps, out, save_every=4, log_every=1, schedule=linear_decay(6, 6), **quiet)

def child(*args, **kw):
    "Train in a process of its own; returns its exit code, minus the signal that killed it."
    p = multiprocessing.get_context('fork').Process(target=train, args=args, kwargs=kw)
    p.start(); p.join()
    return p.exitcode

def kill(): os.kill(os.getpid(), signal.SIGKILL)
def kill_in_save(at):
    "SIGKILL between the write of a checkpoint and its new name."
    def patch():
        replace = os.replace
        run_module.os = type('os', (), {**vars(os), 'replace': staticmethod(lambda a, b: kill() if f'{at:08d}' in str(b) else replace(a, b))})
    return patch
def kill_in_step(at):
    "SIGKILL inside a step, after the painters' backward pass and before the critics'."
    def patch():
        call, count = CycleGAN.pull, []
        def pull(self, b, p):
            count.append(1)
            if len(count) == at: kill()
            return call(self, b, p)
        CycleGAN.pull = pull
    return patch

posix = pytest.mark.skipif(os.name != 'posix', reason='signals')

@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp('whole')
    assert child(out) == 0
    return out

def ends_alike(a, b):
    s, t = (load_checkpoint(sorted(o.glob('checkpoint*'))[-1]) for o in (a, b))
    assert min(u.pop('seconds') for u in (s, t)) > 0   # the clock alone may differ
    assert same(s, t) and s['step'] == 12 and len(s['loop']['method']['pool_l._extra_state']['items']) == 3
    assert (a/'metrics.jsonl').read_bytes() == (b/'metrics.jsonl').read_bytes()
    assert [l['step'] for l in read_log(b)] == list(range(1, 13))
    assert not list(b.glob('.*'))

@posix
@pytest.mark.parametrize('place', ['loading batch 2, before any checkpoint', 'inside step 6', 'saving step 8', 'all three'])
def test_killed_with_SIGKILL_and_taken_up_it_ends_bit_for_bit_as_if_never_stopped(tmp_path, whole, place):
    deaths = {'loading batch 2, before any checkpoint': dict(act={2: kill}), 'inside step 6': dict(patch=kill_in_step(7)), 'saving step 8': dict(patch=kill_in_save(8))}
    for how in deaths.values() if place == 'all three' else [deaths[place]]: assert child(tmp_path, **how) == -signal.SIGKILL
    assert child(tmp_path) == 0
    ends_alike(whole, tmp_path)

def test_seconds_are_those_of_all_starts(tmp_path):
    fit(gan(), Data(), 4, tmp_path, save_every=4, **quiet)
    newest = sorted(tmp_path.glob('checkpoint*'))[-1]
    s = load_checkpoint(newest); save_checkpoint(newest, {**s, 'seconds': 1000.})
    r = fit(gan(), Data(), 8, tmp_path, save_every=4, **quiet)
    assert 1000 < r.seconds < 1100 and load_checkpoint(sorted(tmp_path.glob('checkpoint*'))[-1])['seconds'] == pytest.approx(r.seconds, abs=1)
    seen = []
    fit(gan(), Data(), 12, tmp_path, save_every=4, log_every=1, **{**quiet, 'watch': [lambda v: seen.append(v.seconds)]})
    assert max(seen) < 100   # a watch reckons the time to go from this start

@posix
def test_SIGTERM_saves_exits_143_and_resumes_exactly(tmp_path, whole):
    assert child(tmp_path, act={5: lambda: os.kill(os.getpid(), signal.SIGTERM)}) == 143
    assert sorted(tmp_path.glob('checkpoint*'))[-1].name == 'checkpoint_00000006.safetensors'
    assert child(tmp_path) == 0
    ends_alike(whole, tmp_path)

@posix
def test_ctrl_C_saves_and_interrupts(tmp_path):
    with pytest.raises(KeyboardInterrupt): train(tmp_path, act={2: lambda: os.kill(os.getpid(), signal.SIGINT)})
    assert load_checkpoint(tmp_path/'checkpoint_00000003.safetensors')['step'] == 3

def test_a_checkpoint_holds_all_that_is_promised(whole):
    s = load_checkpoint(sorted(whole.glob('checkpoint*'))[-1])
    assert set(s) == {'step', 'seconds', 'names', 'loop', 'version'} and set(s['loop']) == {'method', 'opts', 'rng', 'scaler'}
    assert set(s['names']) == {'kind', 'config', 'weights', 'players', 'data'} and set(s['loop']['rng']) == {'torch', 'cuda', 'numpy', 'python'}
    assert [len(o['state']) for o in s['loop']['opts']] == [len(p.params()) for p in gan().players()]

def test_the_same_state_can_be_loaded_twice():
    l = Loop(gan(), device='cpu'); l.step(0, Data()[0])
    s, ends = copy.deepcopy(l.state()), []
    for _ in range(2): l.restore(s); l.step(1, Data()[1]); ends.append(copy.deepcopy(l.state()))
    assert same(*ends)

def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    fit(segmentor(), Data(), 2, tmp_path, **quiet)
    def refused(match, m, data=Data()):
        before = weights(m).clone()
        with pytest.raises(XModSegError, match=match): fit(m, data, 4, tmp_path, **quiet)
        assert torch.equal(weights(m), before)
    refused('another kind: found Supervised, needed CycleGAN', gan())
    refused('another data: found a, needed b', segmentor(), Data(fingerprint='b'))
    m = segmentor(); m.weights = dict(seg=2.)
    refused(r"another weights: found {'seg': None}, needed {'seg': 2.0}", m)
    m = segmentor(); m.config = dict(row='M3')
    refused(r"another config: found {'row': None}, needed {'row': 'M3'}", m)
    refused('other nets', Supervised(nn.Conv2d(1, 1, 1)))
    assert fit(segmentor(), Data(), 4, tmp_path, **quiet).step == 4

def test_two_runs_into_one_folder_are_refused_and_so_is_an_unwritable_one_before_the_first_step(tmp_path):
    asked = []
    data = Data(act={0: lambda: asked.append(1)})
    with run_module.Run(tmp_path):
        with pytest.raises(XModSegError, match='another process'): fit(segmentor(), data, 2, tmp_path, **quiet)
    (tmp_path/'file').write_text('')
    with pytest.raises(XModSegError, match='cannot be written'): fit(segmentor(), data, 2, tmp_path/'file', **quiet)
    assert not asked
    fit(segmentor(), data, 2, tmp_path, **quiet)
    with pytest.raises(XModSegError, match='already holds a run'): fit(segmentor(), data, 2, tmp_path, resume=False, **quiet)

def test_same_seed_same_result_other_seed_another():
    ends = [weights((m := gan(), fit(m, Data(), 5, seed=s, **quiet))[0]) for s in (0, 0, 1)]
    assert torch.equal(ends[0], ends[1]) and not torch.equal(ends[0], ends[2])

def test_a_layer_that_its_owner_froze_stays():
    class Data:
        fingerprint = 'a'
        def __getitem__(self, k): v = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(k)); return Bag(x_h=2*v - 1, y_h=(v > .5).float())
    torch.manual_seed(0); net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 1, 1), nn.Sigmoid()); net[0].requires_grad_(False)
    before = [p.clone() for p in net.parameters()]
    fit(Supervised(net, lr=1e-2), Data(), 3, watch=(), device='cpu')
    assert [torch.equal(p, q) for p, q in zip(before, net.parameters())] == [True, True, False, False] and [p.requires_grad for p in net.parameters()] == [False, False, True, True]

@pytest.mark.parametrize('how', [dict(accumulate=0), dict(log_every=0), dict(save_every=0)])
def test_no_steps_between_checkpoints(how, tmp_path):
    with pytest.raises(XModSegError, match='whole numbers from 1'): fit(Supervised(nn.Conv2d(1, 1, 1)), [Bag(x_h=torch.zeros(1, 1, 8, 8), y_h=torch.zeros(1, 1, 8, 8))], 1, tmp_path, watch=(), device='cpu', **how)

def test_the_loop_uses_the_players_weight_decay():
    class Decay(Method):
        def __init__(self): super().__init__(); self.w = nn.Linear(1, 1, bias=False); nn.init.ones_(self.w.weight)
        def paths(self, b): return Bag(v=self.w.weight.sum())
        def players(self): return [Player('w', [self.w], lambda b, p: dict(z=0*p.v), lr=.25, weight_decay=.1)]
    m = Decay(); fit(m, [Bag(x=torch.zeros(1))], 1, watch=(), device='cpu')
    assert abs(float(m.w.weight) - .75) < 1e-5                             # Adam's first step is lr, towards 0

def test_after_a_look_the_nets_are_back_at_work():
    m, modes = Supervised(nn.Sequential(nn.Conv2d(1, 1, 1), nn.Dropout(.1), nn.Sigmoid())), []
    m.net.register_forward_hook(lambda *a: modes.append(m.net.training))
    fit(m, [Bag(x_h=torch.zeros(1, 1, 8, 8), y_h=torch.zeros(1, 1, 8, 8))]*3, 3, log_every=1, device='cpu', watch=(lambda run: None,))
    assert modes == [True]*3

def test_a_refused_run_leaves_the_log_of_the_other_as_it_was(tmp_path):
    fit(gan(), Data(), 5, tmp_path, device='cpu', watch=(), log_every=1, save_every=5)
    with open(tmp_path/'metrics.jsonl', 'a') as f: f.write('{"step": 6}\n{"step": 7}\n')           # written, then stopped before the next checkpoint
    before = (tmp_path/'metrics.jsonl').read_bytes()
    with pytest.raises(XModSegError, match='another data'): fit(gan(), Data(fingerprint='b'), 9, tmp_path, device='cpu', watch=())
    assert (tmp_path/'metrics.jsonl').read_bytes() == before

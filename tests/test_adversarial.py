"Values of the adversarial terms by hand, and a pool that keeps pairs, ages and checkpoints straight."
from math import log
import pytest, torch
from torch.testing import assert_close
from xmodseg.adversarial import Averaged, Pool, fool, spot
from xmodseg.core import Bag, XModSegError

real = torch.tensor([[[[1., 0], [2, 1]]]])
fake = torch.tensor([[[[0., 1], [-1, 2]]]])
p34  = torch.tensor([[[[log(3), log(3)], [0., log(3)]]]])   # probabilities 3/4 3/4 1/2 3/4
near = lambda a, b: assert_close(a, torch.tensor(b, dtype=a.dtype))

def test_SADN_E6_lsgan_by_hand():
    near(spot(real, fake, 'lsgan'), (2/4 + 6/4)/2)
    near(fool(fake, 'lsgan'), 6/4)
    assert fool(fake) == fool(fake, 'lsgan') and spot(real, fake) == spot(real, fake, 'lsgan')

def test_SADN_E6_vanilla_by_hand():
    near(fool(p34, 'vanilla'), (3*log(4/3) + log(2))/4)
    near(spot(p34, fake*0, 'vanilla'), ((3*log(4/3) + log(2))/4 + log(2))/2)
    near(spot(fake*0, p34, 'vanilla'), (log(2) + (3*log(4) + log(2))/4)/2)

def test_SADN_E6_minmax_by_hand():
    near(fool(p34, 'minmax'), (3*log(1/4) + log(1/2))/4)
    assert spot(real, fake, 'minmax') == spot(real, fake, 'vanilla')
    near(fool(p34, 'minmax') + 2*spot(torch.full((1, 1, 2, 2), 99.), p34, 'minmax'), 0.)   # the critic's own half, sign turned

@pytest.mark.parametrize('mode', ['lsgan', 'vanilla', 'minmax'])
def test_SADN_E6_directions(mode):
    f, r, g = (torch.zeros(2, 1, 3, 3, requires_grad=True) for _ in range(3))
    fool(f, mode).backward(); assert (f.grad < 0).all()          # descending makes fakes look real
    r.data += .5; g.data += .5
    spot(r, g, mode).backward(); assert (r.grad < 0).all() and (g.grad > 0).all()

def test_SADN_E6_slopes_of_a_sure_critic():
    def slope(mode):
        z = torch.tensor(-6., requires_grad=True)
        return torch.autograd.grad(fool(z, mode), z)[0]
    near(slope('lsgan'), -14.); assert_close(slope('vanilla'), -torch.tensor(6.).sigmoid()); assert_close(slope('minmax'), -torch.tensor(-6.).sigmoid())

def test_SADN_E6_rest():
    zero, half = torch.zeros(4), torch.full((4,), .5)
    near(spot(zero, zero, 'vanilla'), log(2)); near(spot(half, half, 'lsgan'), 1/4)

def test_SADN_E6_extreme_and_half_precision_logits_stay_finite():
    far = torch.tensor([-1e4, 1e4])
    for mode in ('vanilla', 'minmax'): assert spot(far, far, mode).isfinite() and fool(far, mode).isfinite()
    big = torch.tensor([300.], dtype=torch.float16)              # 299**2 overflows float16
    assert fool(big).dtype == torch.float32 and spot(big, big).isfinite()

def test_SADN_E6_mean_not_sum(): # the size of the map and of the batch must not matter
    for mode in ('lsgan', 'vanilla', 'minmax'): assert_close(fool(fake.repeat(3, 1, 2, 2), mode), fool(fake, mode))

@pytest.mark.parametrize('f', [lambda: fool(fake, 'wgan'), lambda: spot(real, fake, 'hinge')])
def test_unknown_form_is_refused(f):
    with pytest.raises(XModSegError, match='lsgan, vanilla, minmax'): f()

num = lambda v, n=1: torch.full((n, 1, 2, 2), float(v))

def test_pool_fills_and_passes():
    p = Pool(3); x = torch.arange(3.).view(3, 1, 1, 1).requires_grad_(); y = p(x*1)
    assert torch.equal(y, x) and not y.requires_grad and len(p.items) == 3
    assert all(not t.requires_grad for i in p.items for t in i)

def test_pool_stores_copies():
    p = Pool(2); x = num(1); p(x); x += 1
    assert p.items[0][0].unique().tolist() == [1.] and p.items[0][0].untyped_storage().nbytes() == 16

def test_pool_statistics():
    torch.manual_seed(0); p = Pool(10); age = []
    for v in range(6100): age.append(v - float(p(torch.full((1, 1), float(v)))))
    age = torch.tensor(age[100:])
    assert abs((age > 0).float().mean() - .5) < .03 and abs(age[age > 0].mean() - 20) < 2.5

def test_pool_tosses_for_each_item_and_keeps_pairs():
    torch.manual_seed(0); p, mixed = Pool(4), 0
    for v in range(40):
        b = p(Bag(x=num(v, 3), m=(num(v + 100, 3),)))
        assert isinstance(b, Bag) and list(b) == ['x', 'm'] and torch.equal(b.x + 100, b.m[0])
        mixed += len(b.x[:, 0, 0, 0].unique()) > 1
    assert mixed > 15

def test_pool_key_order_does_not_mix_tensors():
    torch.manual_seed(0); p = Pool(1)
    for v in range(20):
        b = p(dict(x=num(v), m=num(-v)) if v % 2 else dict(m=num(-v), x=num(v)))
        assert torch.equal(b['x'], -b['m'])

def test_pool_resumes_bit_for_bit(tmp_path):
    a, b = Pool(4), Pool(4)
    for v in range(9): a(num(v))
    torch.save(a.state_dict(), tmp_path/'p.pt'); b.load_state_dict(torch.load(tmp_path/'p.pt', weights_only=True))
    saved = [i[0].clone() for i in b.items]
    got = []
    for p in (a, b): torch.manual_seed(1); got.append(torch.cat([p(num(v)) for v in range(20, 40)]))
    assert torch.equal(*got) and not torch.equal(got[0][:, 0, 0, 0], torch.arange(20., 40))
    assert len(saved) == 4

def test_pool_state_is_not_aliased():
    a, b = Pool(2), Pool(2); a(num(1)); b.load_state_dict(a.state_dict()); b(num(2))
    assert len(a.items) == 1 and len(b.items) == 2

def test_pool_size_zero_passes_everything():
    p = Pool(0); x = num(3, 2)
    assert torch.equal(p(x), x) and p.items == []

def test_pool_refusals():
    with pytest.raises(XModSegError, match='fewer than no'): Pool(-1)
    with pytest.raises(XModSegError, match='one batch size'): Pool(2)((num(1), num(1, 2)))
    with pytest.raises(XModSegError, match='str'): Pool(2)('x')
    p = Pool(2); p(num(0, 2))
    with pytest.raises(XModSegError, match='another shape'): p(torch.zeros(1, 1, 3, 3))
    with pytest.raises(XModSegError, match='larger'): Pool(1).load_state_dict(p.state_dict())

def test_an_old_image_comes_with_its_own_maps():
    organs = lambda x: torch.cat([(k*x).sigmoid() for k in (1., 2., 3., 4.)], 1)
    torch.manual_seed(0); pool, old = Pool(5), 0
    for v in range(40):
        x = torch.randn(2, 1, 4, 4) + v
        got = pool(dict(x=x, p=organs(x)))
        assert torch.equal(organs(got['x']), got['p'])
        old += sum(not torch.equal(a, b) for a, b in zip(got['x'], x))
    assert old > 20 and all(len(item) == 2 for item in pool.items)

# ---- 24.1

def linear(v):
    net = torch.nn.Linear(2, 1); torch.nn.init.constant_(net.weight, v); torch.nn.init.constant_(net.bias, -v)
    return net

def test_24_1_the_mean_by_hand():
    mean, w = Averaged(linear(0.), keep=.9), 0.
    for n in range(1, 120):
        v = float(n % 7); mean.follow(linear(v)); k = min(.9, n/(n + 9)); w = k*w + (1 - k)*v
        if n < 30 or n > 110: assert abs(mean.net.weight[0, 1].item() - w) < 1e-5 and abs(mean.net.bias.item() + w) < 1e-5
    assert abs(mean(torch.tensor([[1., 2.]])).item() - 2*w) < 1e-4                # w + 2 w - w

def test_24_1_memory_is_that_of_keep():
    mean = Averaged(linear(0.), keep=.98)
    for _ in range(2000): mean.follow(linear(0.))
    for _ in range(50): mean.follow(linear(1.))
    assert abs(mean.net.weight[0, 0].item() - (1 - .98**50)) < 1e-4

def test_24_1_nobody_trains_it_and_the_followed_net_is_not_touched():
    net = linear(1.); mean = Averaged(net)
    assert not any(p.requires_grad for p in mean.parameters()) and mean.net is not net
    with torch.no_grad(): net.weight.fill_(5.)
    assert mean.net.weight[0, 0] == 1
    before = net.weight.clone(); mean.follow(net); assert torch.equal(net.weight, before) and net.weight.requires_grad

def test_24_1_whole_numbers_are_copied_and_a_checkpoint_goes_on():
    bn = torch.nn.BatchNorm1d(2); bn(torch.randn(8, 2)); bn(torch.randn(8, 2))
    mean = Averaged(torch.nn.BatchNorm1d(2)); mean.follow(bn); assert int(mean.net.num_batches_tracked) == 2
    a, b = Averaged(linear(0.), .5), Averaged(linear(9.), .5)
    for v in (1., 2., 3.): a.follow(linear(v))
    b.load_state_dict(a.state_dict()); a.follow(linear(4.)); b.follow(linear(4.))
    assert torch.equal(a.net.weight, b.net.weight) and int(b.n) == 4

@pytest.mark.parametrize('keep', (-.1, 1., 2., float('nan')))
def test_24_1_a_share_that_is_none(keep):
    with pytest.raises(XModSegError, match='no such share'): Averaged(linear(0.), keep)

def test_24_a_pool_keeps_named_tuples_and_refuses_an_empty_batch():
    from collections import namedtuple
    Pair = namedtuple('Pair', 'image maps')
    got = Pool(2)(Pair(torch.ones(1, 1, 2, 2), torch.zeros(1, 3, 2, 2)))
    assert isinstance(got, Pair) and got.image.sum() == 4 and got.maps.shape == (1, 3, 2, 2)
    with pytest.raises(XModSegError, match='of 1 or more'): Pool(2)(torch.zeros(0, 1, 2, 2))

def test_24_1_a_mean_follows_weights_and_lets_a_drawer_be():
    net = torch.nn.Sequential(torch.nn.Linear(1, 1, bias=False), Pool(2)); net[0].weight.data.fill_(0.)
    mean = Averaged(net, keep=.5)
    net[0].weight.data.fill_(1.); net[1](torch.ones(1, 1)); mean.follow(net)
    assert float(mean.net[0].weight) == pytest.approx(1 - .1) and mean.net[1].items == []

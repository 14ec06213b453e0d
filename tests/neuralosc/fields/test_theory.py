"""What the theorems of the papers promise, with their constants, where it holds and where it may fail."""

import itertools
import math

import pytest
import torch

import neuralosc
import solvers
from neuralosc import ContinuousRNN

F64 = torch.float64


@pytest.fixture(autouse=True)
def _plain():
    """Each network here runs once or twice, which compiling does not pay for."""
    with solvers.backend("plain"):
        yield


def transition(rnn, state, x):
    """The Jacobian of one interval for one sample, `(components * hidden,) * 2`, state and slope flattened."""
    size = rnn.components * rnn.hidden_size
    flow = lambda s: rnn(x.view(1, 1, -1), s.view(1, rnn.components, -1))[1].reshape(-1)  # noqa: E731
    return torch.func.jacrev(flow)(state.reshape(size)).detach()


# coRNN: Rusch & Mishra, ICLR 2021, section 3. The paper sets gamma = epsilon = 1 and takes the damping implicitly.


def cornn(dt, hidden=16, scale=1.0, gamma=1.0, epsilon=1.0):
    """The paper's IMEX step, weights of a given size."""
    rnn = neuralosc.CoRNN(2, hidden, dt=dt, gamma=gamma, epsilon=epsilon, solver="imex_euler").double()
    with torch.no_grad():
        for parameter in rnn.parameters():
            parameter.mul_(scale)
    return rnn


def energy(rnn, states):
    """gamma |y|^2 + |z|^2, which is |y|^2 + |z|^2 in the paper."""
    y, z = states.unbind(-2)
    return rnn.field.gamma() * y.square().sum(-1) + z.square().sum(-1)


@pytest.mark.parametrize(("gamma", "epsilon"), [(1.0, 1.0), (2.7, 4.7), (9.0, 0.5)])
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_cornn_states_stay_below_the_energy_bound(gamma, epsilon, scale):
    """|y_n|^2 + |z_n|^2 <= m n dt from rest, for m neurons, any weights and inputs, and dt <= 1.

    With other coefficients the same proof gives gamma |y|^2 + |z|^2 <= m n dt / epsilon for dt <= epsilon / gamma.
    """
    for dt in (0.05, 1.0):
        rnn = cornn(dt * epsilon / gamma, scale=scale, gamma=gamma, epsilon=epsilon)
        with torch.no_grad():
            states = rnn.solve(3 * torch.randn(8, 100, 2, dtype=F64)).states
        bound = 16 * torch.arange(1, 101, dtype=F64) * rnn.dt / epsilon
        assert bool((energy(rnn, states) <= bound).all())


def test_cornn_leaves_the_energy_bound_for_inadmissible_steps():
    """From dt = 1 + sqrt(5) on the linear part of the step alone grows: z+ = (z - dt y) / (1 + dt), y+ = y + dt z+."""
    limit = 1 + math.sqrt(5)
    for dt, stable in ((1.0, True), (limit - 0.01, True), (limit + 0.01, False)):
        step = transition(cornn(dt, scale=0.0), torch.zeros(32, dtype=F64), torch.zeros(2, dtype=F64))
        assert (float(torch.linalg.eigvals(step).abs().max()) < 1) == stable
    rnn = cornn(limit + 0.1)
    with torch.no_grad():
        states = rnn.solve(torch.randn(8, 100, 2, dtype=F64)).states
    assert bool((energy(rnn, states)[:, -1] > 16 * 100 * rnn.dt).all())


def admissible(rnn, dt):
    """The least r with max(dt (1 + ||W||), dt ||R||) / (1 + dt) <= dt^r, in the largest row sums."""
    W, R = rnn.field.W.detach(), rnn.field.R.detach()
    largest = max(1 + float(W.abs().sum(1).max()), float(R.abs().sum(1).max()))
    return math.log(dt * largest / (1 + dt)) / math.log(dt)


def test_cornn_one_step_grows_a_gradient_by_no_more_than_it_may():
    """||dX_n / dX_n-1|| <= 1 + 3 dt^r in the largest row sum, under the assumption on dt with 1/2 <= r <= 1."""
    for dt, scale in itertools.product((1e-4, 1e-3, 1e-2), (0.1, 1.0, 3.0)):
        rnn = cornn(dt, scale=scale)
        r = min(1.0, admissible(rnn, dt))
        assert r >= 0.5
        for _ in range(5):
            state, x = torch.randn(32, dtype=F64), torch.randn(2, dtype=F64)
            step = transition(rnn, state, x)
            assert float(step.abs().sum(1).max()) <= 1 + 3 * dt**r
    # The largest slope of tanh is met at rest: weights that break the assumption break the bound.
    dt, rnn = 0.01, cornn(0.01, scale=0.0)
    with torch.no_grad():
        rnn.field.W.fill_(40.0)
    assert admissible(rnn, dt) < 0.5
    step = transition(rnn, torch.zeros(32, dtype=F64), torch.zeros(2, dtype=F64))
    assert float(step.abs().sum(1).max()) > 1 + 3 * dt**0.5


def paper_gradient(rnn, x, targets):
    """The largest entry of the gradient of E = mean over n of |y_n - target_n|^2 / 2, for one sample."""
    loss = (rnn(x)[0] - targets).square().sum(-1).mean() / 2
    return max(float(g.abs().max()) for g in torch.autograd.grad(loss, [rnn.field.W, rnn.field.R, rnn.field.V.bias]))


def test_cornn_gradients_stay_below_their_bound():
    """|dE / dtheta| <= 3/2 (m + Y sqrt(m)) for targets of at most Y over a time of 1, under the assumption on dt."""
    m, Y = 16, 2.0
    for dt, scale in itertools.product((2e-3, 1e-2), (1.0, 2.0)):
        rnn = cornn(dt, scale=scale)
        assert admissible(rnn, dt) >= 0.5
        for _ in range(2):
            x, targets = (2 * torch.rand(1, round(1 / dt), k, dtype=F64) - 1 for k in (2, m))
            assert paper_gradient(rnn, x, Y * targets) <= 1.5 * (m + Y * math.sqrt(m))
    # Without the assumption: a long time step and large weights.
    rnn = cornn(4.0, scale=3.0)
    assert not 0 < admissible(rnn, 4.0) <= 1
    x, targets = (2 * torch.rand(1, 100, k, dtype=F64) - 1 for k in (2, m))
    assert paper_gradient(rnn, x, Y * targets) > 1.5 * (m + Y * math.sqrt(m))


# UnICORNN: Rusch & Mishra, ICML 2021, section 3: the step is symplectic, hence invertible and volume preserving.


@pytest.mark.parametrize("solver", ["symplectic_euler", "stormer_verlet", "euler"])
def test_unicornn_preserves_volume_and_can_be_undone(solver):
    rnn = neuralosc.UnICORNN(2, 6, dt=0.19, alpha=3.0, solver=solver).double()
    volumes = []
    for _ in range(5):
        state, x = 3 * torch.randn(12, dtype=F64), torch.randn(2, dtype=F64)
        step = transition(rnn, state, x)
        volumes.append(float(torch.linalg.det(step)))
        J = torch.kron(torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=F64), torch.eye(6, dtype=F64))
        # Every channel has its own s on both components, so that dq dp is kept channel by channel.
        symplectic = float((step.T @ J @ step - J).abs().max()) < 1e-12
        assert symplectic == (solver != "euler")
    assert (max(abs(v - 1) for v in volumes) < 1e-12) == (solver != "euler")
    if solver == "euler":
        return
    field, state, currents = rnn.field.bind(), torch.randn(3, 2, 6, dtype=F64), torch.randn(200, 3, 6, dtype=F64)
    start = at = state
    with torch.no_grad():
        for u in currents:
            at = torch.stack(rnn.solver.step(field, 0.0, rnn.dt, at.unbind(-2), lambda t, u=u: u), -2)
        assert float((at - start).abs().max()) > 0.1
        for u in reversed(currents):
            at = torch.stack(rnn.solver.unstep(field, 0.0, rnn.dt, at.unbind(-2), lambda t, u=u: u), -2)
    torch.testing.assert_close(at, start, rtol=0, atol=1e-11)


# Lipschitz RNN: Erichson et al., ICLR 2021, theorem 1, for the constant 1 of tanh.


def lipschitz(beta, gamma, gamma_W=0.5, seed=0):
    torch.manual_seed(seed)
    return neuralosc.Lipschitz(2, 8, beta=beta, gamma=gamma, gamma_W=gamma_W, init_std=2.0).double()


def separation(field, time):
    """Distances of two trajectories under one input, at the start and at the end, and the size of the state."""
    rnn = ContinuousRNN(field, "rk4", dt=time / 20, substeps=round(5 * time))
    starts, x = 5 * torch.randn(2, 1, 8, dtype=F64), torch.randn(1, 20, 2, dtype=F64).expand(2, -1, -1)
    with torch.no_grad():
        ends = rnn(x, starts)[1]
    return float((starts[0] - starts[1]).norm()), float((ends[0] - ends[1]).norm()), float(ends.norm())


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.75, 1.0])
@pytest.mark.parametrize("margin", [0.05, 0.5, 2.0])
def test_lipschitz_stability_is_decided_by_beta_and_gamma(beta, margin):
    """(a): |sigma_min(A_sym)| > sigma_max(W) with A_sym negative, then trajectories meet at the rate of the difference.

    A_sym = (1 - beta) (M + M^T) - gamma, so beta and gamma decide. On the other side, where A_sym is positive and
    exceeds sigma_max(W), they part at least as fast, and leave every bound.
    """
    plain = lipschitz(beta, 0.0)
    with torch.no_grad():
        symmetric = (1 - beta) * torch.linalg.eigvalsh(plain.A + plain.A.T)
        largest = float(torch.linalg.matrix_norm(plain.prepare()["W"], 2))
    stable, unstable = float(symmetric.max()) + largest + margin, float(symmetric.min()) - largest - margin
    time = 4.0
    before, after, size = separation(lipschitz(beta, stable), time)
    assert after <= before * math.exp(-margin * time) * (1 + 1e-4) and size < 100
    before, after, size = separation(lipschitz(beta, unstable), time)
    assert after >= before * math.exp(margin * time) * (1 - 1e-4) and size > after / 2


def test_lipschitz_second_condition():
    """(b): A_sym and W + W^T negative definite and A^T W + W^T A positive definite, where (a) does not hold."""
    field = lipschitz(0.75, 1.0, gamma_W=4.0)
    with torch.no_grad():
        A, W = (field.prepare()[name].T for name in "AW")
        assert float(torch.linalg.eigvalsh(A + A.T).max()) < 0 and float(torch.linalg.eigvalsh(W + W.T).max()) < 0
        assert float(torch.linalg.eigvalsh(A.T @ W + W.T @ A).min()) > 0
        assert float(torch.linalg.eigvalsh(A + A.T).abs().min()) / 2 < float(torch.linalg.matrix_norm(W, 2))
    before, after, size = separation(field, 30.0)
    assert after < 1e-4 * before and size < 10


# AntisymmetricRNN: Chang et al., ICLR 2019, section 3.


@pytest.mark.parametrize("gamma", [0.0, 0.001, 0.3])
def test_antisymmetric_eigenvalues_are_near_the_imaginary_axis(gamma):
    """J = D (S - gamma) with S skew and D the slopes of tanh: real parts 0, or from -gamma max(D) to -gamma min(D)."""
    field = neuralosc.Antisymmetric(2, 9, gamma=gamma, init_std=9.0).double()
    for _ in range(5):
        h, u = torch.randn(2, 9, dtype=F64) / 3
        J = torch.func.jacrev(lambda h, u=u: field(0.0, h.view(1, 1, -1), u.view(1, -1)).flatten())(h)
        slopes = 1 - torch.tanh(h @ field.prepare()["W"] + u).square()
        eigenvalues = torch.linalg.eigvals(J).detach()
        slopes, slack = slopes.detach(), 1e-12
        assert float(eigenvalues.imag.abs().max()) > 0.3
        assert float(eigenvalues.real.max()) <= -gamma * float(slopes.min()) + slack
        assert float(eigenvalues.real.min()) >= -gamma * float(slopes.max()) - slack


def test_antisymmetric_forward_propagation_is_stable_where_the_paper_says():
    """Euler's method is stable for |1 + eps lambda| <= 1 for all eigenvalues: without gamma never, with enough it is.

    At rest lambda = -gamma + i omega, so that gamma >= eps (gamma^2 + omega^2) / 2 is the bound.
    """
    eps, zero = 0.1, torch.zeros(2, dtype=F64)
    field = neuralosc.Antisymmetric(2, 9, gamma=0.0, init_std=9.0).double()
    omega = float(torch.linalg.eigvals(field.prepare()["W"].detach()).abs().max())
    root = (1 - math.sqrt(1 - (eps * omega) ** 2)) / eps
    for gamma, stable in ((0.0, False), (0.9 * root, False), (1.1 * root, True)):
        field.gamma = gamma
        step = transition(ContinuousRNN(field, "euler", dt=eps), torch.zeros(9, dtype=F64), zero)
        assert (float(torch.linalg.eigvals(step).abs().max()) <= 1) == stable

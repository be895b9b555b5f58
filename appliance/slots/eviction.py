"""What it costs to lose an engine: seconds of loading, times the chance that it is missed. Pure."""

HORIZON_S = 30.0
"""Who is asked for within this time is missed."""
_SILENCE = 2.0


def reuse_probability(rate_per_s: float, idle_s: float, horizon_s: float = HORIZON_S) -> float:
    """The chance of a request within the horizon, after `idle_s` seconds without one.

    Requests are taken to be Poisson with a rate that is not known: before the silence exponential
    around `rate_per_s`, so that each second of silence speaks for a lower one. A gamma mixture of
    Poisson streams has waiting times of the Lomax kind; with shape 1 and scale 1 / rate + idle,
    P(T <= h) = h / (1 / rate + idle + h). People who leave do not come back at a lower rate, but
    not at all: silence counts twice, which the simulator's sessions bear out.
    """
    if rate_per_s <= 0 or horizon_s <= 0:
        return 0.0
    return horizon_s / (1 / rate_per_s + _SILENCE * max(idle_s, 0.0) + horizon_s)


def expected_cost_s(
    reload_s: float,
    rate_per_s: float,
    idle_s: float,
    horizon_s: float = HORIZON_S,
    *,
    next_in_s: float | None = None,
) -> float:
    """Seconds of waiting that its loss is expected to cause.

    `reload_s` is what it takes to load it or to wake it again, as measured. More for a longer
    reload, a higher rate and a longer horizon; less for a longer silence; 0 where nobody asks.
    `next_in_s` is for who asks regularly: the nearer the next request, the more.
    """
    if next_in_s is None:
        chance = reuse_probability(rate_per_s, idle_s, horizon_s)
    else:
        chance = horizon_s / (max(next_in_s, 0.0) + horizon_s)
    return max(reload_s, 0.0) * chance

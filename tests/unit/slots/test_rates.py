from appliance.slots.rates import RequestRate


def test_no_requests_are_no_rate() -> None:
    assert RequestRate().per_second(100.0) == 0.0


def test_rate_is_the_mean_of_the_last_ten_seconds() -> None:
    rate = RequestRate()
    for step in range(20):
        rate.add(100.0 + step / 2)
    assert rate.per_second(109.5) == 2.0


def test_old_requests_are_forgotten() -> None:
    rate = RequestRate()
    for _ in range(30):
        rate.add(100.0)
    assert rate.per_second(105.0) == 3.0
    assert rate.per_second(110.1) == 0.0

from appliance.batch.trial import Trial


def test_an_answer_proves_that_a_line_was_at_fault() -> None:
    trial = Trial()
    trial.died("e1", alone=True)
    assert trial.needs_proof
    assert trial.answered() == 1
    assert not trial.needs_proof
    assert trial.answered() == 0


def test_an_engine_dies_once_however_many_lines_it_worked_on() -> None:
    trial = Trial()
    for _ in range(5):
        trial.died("e1", alone=False)
    assert trial.answered() == 0
    trial.died("e2", alone=True)
    trial.died("e3", alone=True)
    trial.given_up()
    assert trial.answered() == 3
    # The first death is accounted for.
    trial.died("e4", alone=True)
    trial.given_up()
    assert trial.answered() == 1


def test_a_death_in_company_stays_without_a_line_that_did_it() -> None:
    trial = Trial()
    trial.died("e1", alone=False)
    assert not trial.needs_proof
    assert trial.answered() == 0

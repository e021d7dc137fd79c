"""What holds for all tests that Hypothesis draws: a machine that is busy is no failure."""

from hypothesis import HealthCheck, settings

settings.register_profile("copilotlab", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.load_profile("copilotlab")

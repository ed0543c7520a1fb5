"""The networks, each for all tests that ask for one."""

import pytest
from networks import NETWORKS


@pytest.fixture(params=NETWORKS)
def network(request):
    pytest.importorskip(NETWORKS[request.param].library)
    return NETWORKS[request.param]

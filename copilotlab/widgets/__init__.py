"""Panels for notebooks and dashboards: watch and break a lab, ask a cluster, compare nodes and models.

    cluster.panel()                                    # all nodes of a namespace, and what can be done about them
    lab.panel()                                        # a live panel in which every fault can be begun and ended
    SearchPanel(lab)                                   # ask one node, see whether all agree
    ComparisonPanel(lab, models=["hash", "wordllama"])  # all nodes and several models, side by side
    LiveAnswer(drawn, {"field": Dropdown(...)})         # your own function of some controls, drawn anew at each change

They work in JupyterLab and under Voila; where there is no widget manager they show a static page. Importing this
package needs ipywidgets and anywidget: pip install 'copilotlab[lab]'.
"""

from importlib.util import find_spec

if find_spec("ipywidgets") is None:
    raise ImportError("copilotlab.widgets needs ipywidgets: pip install 'copilotlab[lab]'", name="ipywidgets")
if find_spec("anywidget") is None:
    raise ImportError("copilotlab.widgets needs anywidget: pip install 'copilotlab[lab]'", name="anywidget")

from copilotlab.widgets.cluster_panel import ClusterPanel
from copilotlab.widgets.comparison_panel import ComparisonPanel
from copilotlab.widgets.lab_panel import LabPanel
from copilotlab.widgets.live_answer import LiveAnswer
from copilotlab.widgets.panel import Message, Panel
from copilotlab.widgets.search_panel import SearchPanel

__all__ = ["ClusterPanel", "ComparisonPanel", "LabPanel", "LiveAnswer", "Message", "Panel", "SearchPanel"]

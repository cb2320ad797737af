"""What annotators did, fetched from the labeling tool: stored as it came, each event once, then read.

poll(campaign)   ->   34 new answers

Stored first, interpreted second: a tick that dies in between interprets them the next time.
"""

from __future__ import annotations

from tasks import corrections, refusals
from tasks.campaign import LEDGER, Campaign
from tasks.checkpoint import checkpoint
from tasks.errors import BadInput
from tasks.labeling import RawEvent

MOST_GONE, MOST_GONE_SHARE = 10, 0.1  # answers that may be deleted between two looks without anybody asking


def poll(campaign: Campaign) -> int:
    """Pull, store and interpret what the labeling tool has; returns the number of new answers."""
    if campaign.ledger.latest() is None:
        campaign.tool.require()  # a tool that cannot work is refused before the campaign begins
        return 0
    stored, in_files = _store(campaign)
    stored += corrections.store(campaign)
    answers = campaign.ledger.interpret_events(campaign.tool.interpret, campaign.classes, campaign.tool.instance)
    answers += corrections.interpret(campaign)
    checkpoint("import:interpret:after")
    refusals.write(campaign, in_files)
    if stored:
        campaign.ledger.backup(campaign.store.path(f"{LEDGER}.backup"))
    return answers


def _store(campaign: Campaign) -> tuple[int, list[RawEvent]]:
    """Store what the tool tells, page by page, as it came: how much was new, and the events that stand in files."""
    tool, ledger = campaign.tool, campaign.ledger
    tool.require()
    stored, in_files = 0, []
    for page in tool.pull(ledger.cursor(tool.instance)):
        checkpoint("import:store:before")
        stored += ledger.store_events(tool.instance, page.events, page.cursor)
        checkpoint("import:store:after")
        in_files += [event for event in page.events if event.row is not None]
    gone = list(tool.deleted(ledger.live(tool.instance)))
    _require_few(campaign, len(gone))
    return stored + ledger.store_events(tool.instance, gone), in_files


def _require_few(campaign: Campaign, gone: int) -> None:
    """People delete an answer now and then; when many are gone at once, more likely a server was set back to a backup."""
    latest = campaign.ledger.latest()
    if latest is None or gone <= MOST_GONE:
        return
    held = sum(1 for _ in campaign.ledger.live(campaign.tool.instance))
    if gone <= held * MOST_GONE_SHARE:
        return
    if campaign.ledger.decided("deletions", latest.number) is None:
        raise BadInput(
            f"{gone} of {held} answers are gone from the labeling tool ({campaign.tool.address}). None of them is forgotten "
            "yet. If its data were lost, bring them back from its backup; if people deleted them on purpose: "
            "gleaner accept-deletions --because REASON"
        )

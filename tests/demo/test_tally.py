from poller.demo.tally import settle
from poller.demo.traffic import Sent

SENT = Sent(all={"a", "b", "c", "draft", "poison"}, drafts={"draft"}, poison={"poison"})


def test_every_order_is_counted_once():
    tally = settle(SENT, ["a", "b", "c", "b"], {"poison", "c"}, {"c", "poison"})

    assert str(tally) == (
        "demo: sent 5, handled 3, filtered 1, dead-lettered 1, lost 0; "
        "1 handled more than once, as at-least-once allows"
    )


def test_an_order_that_is_nowhere_is_lost_unless_it_was_to_be_filtered():
    tally = settle(SENT, ["a"], set(), {"b"})

    assert (tally.filtered, tally.left, tally.lost) == (1, 1, 2)
    assert str(tally) == "demo: sent 5, handled 1, filtered 1, dead-lettered 0, lost 2; 1 still queued"


def test_orders_that_nobody_sent_do_not_make_good_for_lost_ones():
    tally = settle(Sent(all={"a"}), ["x"], {"y"}, {"z"})

    assert (tally.handled, tally.dead_lettered, tally.left, tally.lost) == (0, 0, 0, 1)

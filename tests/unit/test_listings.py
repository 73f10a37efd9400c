"""Which listing each order of a batch gets."""

from dataclasses import replace

from fulfillment.providers.reading import SPARE, Listed
from fulfillment.services.listings import Bid, allot, listed_often
from schemas.provider import Quote, Quotes, Want

NAME = "AK-47 | Redline (Field-Tested)"
WANT = Want(NAME, NAME)


def offer(mills: int, item_id: str = "one of them") -> Quote:
    return Quote(item_id, NAME, mills)


def by_name(mills: int) -> Quote:
    """Give what is bought up to this price, whichever item of the name it is."""
    return offer(mills, NAME)


def listed(*mills: int, want: Want = WANT) -> Quotes:
    found, *dearer = map(offer, mills)
    return Quotes({want: found}, len(mills), dearer={want: dearer})


def prices(limits: list[int], quotes: Quotes, *taken: Quote) -> list[int]:
    bids = [Bid(number, WANT, limit) for number, limit in enumerate(limits)]
    found = allot(bids, quotes, taken)
    return [found[number].price_mills for number in range(len(limits))]


def test_each_order_gets_a_listing_of_its_own_the_first_the_cheapest() -> None:
    assert prices([700, 700, 700], listed(600, 605, 610)) == [600, 605, 610]


def test_who_may_pay_least_chooses_first() -> None:
    assert prices([700, 602], listed(600, 605)) == [605, 600]


def test_of_the_same_price_there_are_as_many_as_are_listed() -> None:
    assert prices([700, 700, 700], listed(600, 600, 605)) == [600, 600, 605]


def test_what_is_being_bought_by_others_is_left_to_them() -> None:
    assert prices([700, 700], listed(600, 600, 605, 610), offer(600), offer(605)) == [600, 610]


def test_where_too_few_are_listed_the_provider_decides_who_gets_the_dearest() -> None:
    assert prices([700, 700, 700], listed(600, 605)) == [600, 605, 605]
    assert prices([602, 602], listed(600, 605)) == [600, 600]


def test_what_is_too_dear_is_told_at_its_least_price() -> None:
    assert prices([590], listed(600, 605)) == [600]


def test_wants_that_the_same_listings_will_do_for_share_them() -> None:
    other = Want("elsewhere-17", NAME, or_by_name=True)
    offers = [offer(600, "a"), offer(605, "b")]
    both = dict.fromkeys((WANT, other), offers[0])
    quotes = Quotes(both, 2, dearer=dict.fromkeys(both, offers[1:]))

    found = allot([Bid(1, WANT, 700), Bid(2, other, 700)], quotes)

    assert found == {1: offers[0], 2: offers[1]}


def test_what_was_not_found_gets_nothing() -> None:
    assert allot([Bid(1, Want("gone"), 700)], listed(600)) == {}


def test_only_what_has_several_listings_is_looked_at_twice() -> None:
    assert listed_often(listed(600)) == set()
    assert listed_often(listed(600, 605)) == {NAME}


def test_a_row_that_comes_twice_is_one_listing() -> None:
    found = Listed()
    for item_id, price in (("1", b"0.6"), ("1", b"0.60"), ("2", b"0.6"), (None, b"0.7")):
        found.add(item_id, NAME, price)

    assert [each.price_mills for each in found.cheapest(NAME, NAME, 3)] == [600, 600, 700]


def test_so_many_are_told_of_as_are_wanted_and_some_more() -> None:
    found = Listed()
    for mills in range(400, 0, -1):
        found.add(None, NAME, str(mills / 1000).encode())

    offers = found.cheapest(NAME, NAME, 2)

    assert [each.price_mills for each in offers] == list(range(1, 3 + SPARE))


def test_who_wants_one_item_gets_no_other_item_of_its_name() -> None:
    exact, by_name = Want("a", NAME), Want(NAME, NAME, or_by_name=True)
    a, b = offer(600, "a"), offer(605, "b")
    quotes = Quotes({exact: a, by_name: a}, 2, dearer={exact: [], by_name: [b]})

    found = allot([Bid(1, by_name, 606), Bid(2, exact, 610)], quotes)

    assert found == {1: b, 2: a}


def test_those_that_want_a_name_get_one_each_beside_who_wants_its_cheapest_item() -> None:
    exact, by_name = Want("a", NAME), Want(NAME, NAME, or_by_name=True)
    a, b, c = (offer(mills, item_id) for mills, item_id in ((600, "a"), (605, "b"), (610, "c")))
    quotes = Quotes({exact: a, by_name: a}, 3, dearer={exact: [], by_name: [b, c]})

    found = allot([Bid(1, exact, 600), Bid(2, by_name, 612), Bid(3, by_name, 612)], quotes)

    assert found == {1: a, 2: b, 3: c}


def test_of_a_name_that_full_batches_are_buying_the_next_listing_is_known() -> None:
    """Two that are ahead, and the one that joined them last, of the default size."""
    listing = Listed()
    for mills in range(6000, 6300):
        listing.add(str(mills), NAME, f"{mills / 1000:.3f}".encode())
    found, *dearer = listing.cheapest(NAME, NAME, 1)
    quotes = Quotes({WANT: found}, 300, dearer={WANT: dearer})

    assert prices([7000], quotes, *map(offer, range(6000, 6191))) == [6191]


def test_who_wants_one_item_leaves_the_next_price_to_who_buys_by_name_up_to_a_price() -> None:
    exact = Want("17", NAME)
    quotes = Quotes({exact: offer(600, "17"), WANT: by_name(600)}, 2)
    quotes = replace(quotes, dearer={WANT: [by_name(605)]})

    assert allot([Bid(1, WANT, 612), Bid(2, exact, 612)], quotes) == {
        1: by_name(605),
        2: offer(600, "17"),
    }
    assert allot([Bid(1, WANT, 612)], quotes, [offer(600, "17")]) == {1: by_name(605)}


def of_a_name(*mills: int) -> Quotes:
    found, *dearer = map(by_name, mills)
    return Quotes({WANT: found}, len(mills), dearer={WANT: dearer})


def test_those_that_buy_a_name_all_bid_as_much_as_the_dearest_of_theirs_costs() -> None:
    assert prices([700, 700, 700], of_a_name(600, 605, 610, 620)) == [610, 610, 610]


def test_nobody_bids_more_than_agreed_to() -> None:
    assert prices([606, 604, 700], of_a_name(600, 605, 610)) == [605, 600, 610]
    assert prices([590, 700], of_a_name(600, 605)) == [600, 600]


def of_three(money_mills: int, *, may_wait: bool = True) -> list[int]:
    bids = [Bid(number, WANT, 950) for number in range(3)]
    quotes = of_a_name(600, 605, 900)
    found = allot(bids, quotes, money_mills=money_mills, may_wait=may_wait)
    return [found[number].price_mills for number in range(3)]


def test_no_more_is_bid_for_a_name_than_the_money_covers() -> None:
    assert of_three(700) == [600, 605, 900]  # one of them is bought
    assert of_three(1300) == [605, 605, 900]
    assert of_three(2105) == [605, 605, 900]
    assert of_three(2700) == [900, 900, 900]


def test_who_may_not_wait_for_money_lacks_none_because_others_bid_more() -> None:
    assert of_three(2105, may_wait=False) == [600, 605, 900]
    assert of_three(2700, may_wait=False) == [900, 900, 900]


def test_who_is_buying_a_name_has_the_cheapest_of_it_that_are_left() -> None:
    taken = [by_name(610), by_name(610), offer(605)]

    assert prices([700, 700], of_a_name(600, 605, 610, 620, 630), *taken) == [630, 630]


def test_who_agreed_to_less_than_any_listing_costs_takes_none_from_others() -> None:
    too_low, enough = Want(NAME, NAME, or_by_name=True), Want("b", NAME)
    a, b = offer(605, "a"), offer(610, "b")
    quotes = Quotes({too_low: a, enough: b}, 2, dearer={too_low: [b], enough: []})

    bids = [Bid(1, too_low, 600), Bid(2, too_low, 640), Bid(3, enough, 640)]

    assert allot(bids, quotes) == {1: a, 2: a, 3: b}


def test_one_item_that_two_want_is_one_listing_of_its_name() -> None:
    exact = Want("17", NAME)
    quotes = Quotes({exact: offer(600, "17"), WANT: by_name(600)}, 3)
    quotes = replace(quotes, dearer={WANT: [by_name(600), by_name(605)]})

    found = allot([Bid(1, exact, 612), Bid(2, exact, 612), Bid(3, WANT, 612)], quotes)

    assert found[3] == by_name(600)

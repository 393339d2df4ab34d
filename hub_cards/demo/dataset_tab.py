"""The tab that explores a partitioned dataset: sliders for both θ, the shares they give, galleries by partition."""

from __future__ import annotations

from functools import partial
from typing import Any

import gradio as gr

from pacl.training.partition import PARTITION_NAMES

from .markup import gallery, shares_table
from .partitions import ORDERS, PartitionedPosts, shares_of

PAGE_SIZE = 12
SLIDER_TITLES = {"factual": "θ factual: match in fact above", "emotional": "θ emotional: match in emotion above"}


def dataset_tab(posts: PartitionedPosts) -> None:
    """
    Lay the tab out, inside an open `gr.Blocks`.

    Args:
        posts ([`PartitionedPosts`]): The dataset.
    """
    gr.Markdown(
        f"{len(posts):,} posts, sorted by two scores: does the text name what the picture shows (fact), and does it "
        "feel alike (emotion). A post matches on a side where its score is greater than θ. Moving θ here changes "
        "nothing on disk; the sliders start where the dataset was partitioned."
    )
    with gr.Row():
        sliders = []
        for side in posts.scores:
            low, high = posts.bounds(side)
            sliders.append(
                gr.Slider(
                    low,
                    high,
                    posts.start[side],
                    step=0.001,
                    precision=3,
                    label=SLIDER_TITLES[side],
                    min_width=280,
                    elem_id=f"theta_{side}",
                )  # fmt: skip
            )
    start = list(posts.start.values())
    shares = gr.HTML(show_shares(posts, *start), elem_id="shares", padding=False)
    with gr.Row():
        names = [(name.replace("_", ", "), name) for name in PARTITION_NAMES]
        partition = gr.Radio(names, value="strong", label="Partition", elem_id="partition", min_width=280)
        order = gr.Dropdown(list(ORDERS), value=ORDERS[0], label="Order", elem_id="order", min_width=280)
    where = gr.HTML(elem_id="where", padding=False)
    cards = gr.HTML(elem_id="cards", padding=False)
    with gr.Row(elem_classes="pager"):
        back = gr.Button("Previous page", elem_id="back", min_width=100)
        page = gr.Number(1, minimum=1, precision=0, label="Page", elem_id="page", min_width=80)
        forth = gr.Button("Next page", elem_id="forth", min_width=100)

    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "trigger_mode": "always_last"}
    moved = [slider.change for slider in sliders]
    gr.on(moved, lambda *thresholds: show_shares(posts, *thresholds), sliders, shares, **quiet)
    selected = gr.State()
    inputs, outputs = [page, partition, order, *sliders], [cards, page, where]
    # In turn, so that what is asked for last is what is shown.
    turns = quiet | {"concurrency_limit": 1, "concurrency_id": "page"}
    show = partial(show_page, posts)
    select = partial(show_selected, posts)
    first = [*moved, partition.change, order.change]
    if (app := gr.context.Context.root_block) is not None:
        first.append(app.load)
    gr.on(first, select, [selected, partition, order, *sliders], [selected, *outputs], **turns)
    back.click(lambda number, *values: show((number or 1) - 1, *values), inputs, outputs, **turns)
    forth.click(lambda number, *values: show((number or 1) + 1, *values), inputs, outputs, **turns)
    page.submit(lambda number, *values: show(number or 1, *values), inputs, outputs, **turns)


def show_shares(posts: PartitionedPosts, *thresholds: float) -> str:
    """
    The shares of the partitions.

    Args:
        posts ([`PartitionedPosts`]): The dataset.
        thresholds (`float`): θ of every side that has scores, in their order.
    """
    at = dict(zip(posts.scores, thresholds, strict=True))
    return shares_table(shares_of(posts.codes(at)), len(posts), shares_of(posts.as_saved))


def show_selected(posts: PartitionedPosts, selected: tuple | None, *values: Any) -> Any:
    """
    The first page of a new selection; nothing new where it is the one that is shown, since a slider tells its last
    value twice and the reader may have turned the page in between.

    Args:
        posts ([`PartitionedPosts`]): The dataset.
        selected (`tuple`, *optional*): The selection that is shown.
        values: The selection asked for: partition, order and thresholds, as in [`show_page`].

    Returns:
        The selection, and what [`show_page`] returns.
    """
    return gr.skip() if values == selected else (values, *show_page(posts, 1, *values))


def show_page(
    posts: PartitionedPosts, number: float, partition: str, order: str, *thresholds: float
) -> tuple[str, int, str]:
    """
    One page of a partition.

    Args:
        posts ([`PartitionedPosts`]): The dataset.
        number (`float`): The page, from 1; a number beyond the ends gives the first or the last.
        partition, order (`str`): As in [`PartitionedPosts.members`].
        thresholds (`float`): As in [`show_shares`].

    Returns:
        The cards, the number of the page shown, and where it stands.
    """
    rows = posts.members(dict(zip(posts.scores, thresholds, strict=True)), partition, order)
    pages = max(-(-len(rows) // PAGE_SIZE), 1)
    number = min(max(int(number), 1), pages)
    cards = gallery(posts.page(rows[(number - 1) * PAGE_SIZE : number * PAGE_SIZE]))
    return cards, number, f'<p role="status">Page {number:,} of {pages:,}, {len(rows):,} posts</p>'

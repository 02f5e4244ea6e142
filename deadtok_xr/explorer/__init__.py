"""Explore results and recordings in a browser, also while a training run is being recorded.

In: results, a recording or a Monitor's store. Out: a page on 127.0.0.1 whose views share one selection of tokens and
steps. May import: `results` and what lies below it; Bokeh only inside `page`, `views` and `server`.

source        what is explored of one run: groups of results, the recording, and what is missing
kinds         what a path holds, and why it cannot be explored
opening       opens results, recordings and Monitor stores, of one run or several, and again as they grow
runs          how several runs differ
questions     what is asked most often, answered by tokens and a step
quantities    every quantity per step and row, those that are derived from the recording included
binned        quantities averaged over bins of steps, read block by block; pictures of them
motion_so_far life cycles from motion alone, block by block
rows          the table of tokens: its columns, search and order
cloud         positions of the tokens along principal axes
story         the elements of one token around one step
selection     tokens and steps, as Python, as a link
in_words      one line about a run for the terminal
server        the local web server
page          one page of a browser: the selection, and the views that show it
work          what is computed beside a page, in other threads
views         the plots
"""

from deadtok_xr.explorer.server import Explorer, explore

__all__ = ["Explorer", "explore"]

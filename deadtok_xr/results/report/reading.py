"""What each picture is called, and how to read it: two lines for who sees it for the first time."""

from __future__ import annotations

TITLES = {
    "displacement": "How far tokens move",
    "trajectories": "Every token's displacement",
    "phases": "Phases on the lattice",
    "phases_magnitude": "Phases by magnitude",
    "phases_cells": "Phases by cells of the grid",
    "lifecycle": "Life cycles",
    "freezing": "How many stand still",
    "epochs": "Epochs of the radius",
    "census": "Tokens in the very same place",
    "topology": "Neighbours at the spacing of the grid",
    "connectivity": "How close is one component?",
    "speeds": "The cloud and the motion within it",
    "lattice": "Steps on the lattice",
    "exponents": "Where on the lattice the elements are",
    "cloud": "Heat, direction and persistence",
    "spectrum": "The shape of the cloud",
    "coherence": "Do the tokens move as one?",
    "h_persistence": "Does the push keep its direction?",
    "centroid_origin": "What the final centroid is made of",
    "freeze_predictors": "What goes with freezing early",
    "mechanism": "Why tokens move or stand still",
    "critical_boundary": "Adam's step against half the gap",
}
HOW_TO_READ = {
    "displacement": (
        "The line is the mean displacement over tokens at each step, the band one standard deviation. The strip below "
        "tells the steps at which nothing moved, which a logarithmic axis cannot show."
    ),
    "trajectories": (
        "Each column is a step, and the darker a place, the more tokens moved that far there; the line is the mean. "
        "The strip at the bottom counts tokens that did not move."
    ),
    "phases": (
        "The height of a colour is the share of tokens in that phase, from frozen (dark) to early (bright). Vertical "
        "lines mark the steps at which a majority is in a phase or a colder one."
    ),
    "phases_magnitude": (
        "The same with the regimes of notebook 1.31b, which compare a displacement with the token's own norm. A token "
        "that it calls frozen may still have hopped in a few dims."
    ),
    "phases_cells": (
        "The same with the scheme of cells, which goes by the length of the lattice displacement alone, from "
        "fimbulwinter (nothing moves) to hypernova."
    ),
    "lifecycle": (
        "Every row is a token, every column a step, coloured by the phase of its motion; tokens are in the order in "
        "which they came to rest. Where a row grows bright again, the token thawed."
    ),
    "freezing": (
        "The share of tokens that did not move at each step. Marked are the steps at which none moved, and the one "
        "from which none ever moved again."
    ),
    "epochs": (
        "Top: the radius of the cloud; where it grows the cloud inhales, where it suddenly shrinks it sneezes. Below: "
        "its velocity, and the share of tokens that stand still."
    ),
    "census": (
        "Black holes are places that two or more tokens share to the bit. Shown are how many there are, how many "
        "tokens they hold, and how many the largest one holds."
    ),
    "topology": (
        "Top: the spacing of the grid at the centroid. Middle: the share of pairs of tokens closer than that. Bottom: "
        "how many groups they form; one large group is a crystal, all singletons a gas."
    ),
    "connectivity": (
        "The smallest distance at which all tokens hang together, at chosen steps, against the spacing of the grid. "
        "The nearer the two, the closer the cloud is to a crystal."
    ),
    "speeds": (
        "Bulk speed is that of the centroid, thermal speed that of the tokens in its frame. Bulk above thermal means "
        "that tokens are carried along; thermal above bulk, that they move on their own."
    ),
    "lattice": (
        "Top: the share of elements that moved, that changed their exponent, and of those that moved, that moved by "
        "half cells, inwards from a power of two. Bottom: tokens by the length of their hop against their mean ULP."
    ),
    "exponents": (
        "Each column is a step, each row an exponent, twice as large as the one below it. The brighter a place, the "
        "more elements have that exponent; white means none."
    ),
    "cloud": (
        "Top: the mean square speed, of the tokens in the frame of the centroid, and with its drift. Below: how many "
        "of those that moved went outwards, and how much each kept to its last direction."
    ),
    "spectrum": (
        "Top: the variance along each principal axis, from the largest (dark) to the smallest (pale). Bottom: how "
        "many axes carry it; all of them for a sphere, one for a line."
    ),
    "coherence": (
        "A cosine of 1 means that all displacements point the same way, 0 that they are unrelated. The lower panels "
        "compare the common direction with what should push it."
    ),
    "h_persistence": (
        "Left of the lag at which the autocorrelation falls to half, the push is still the same. The swing is the "
        "angle by which the mean hidden state turns in one step."
    ),
    "centroid_origin": (
        "The two shares add up to the length of the final centroid. Where drift is all of it, the place where the "
        "tokens began has been forgotten."
    ),
    "freeze_predictors": (
        "Bars to the right: tokens with more of it freeze later. The whisker is the 95% interval; where it crosses "
        "zero, nothing is shown."
    ),
    "mechanism": (
        "Top: the share of tokens that moved, whose update rounded to zero, and that had no gradient. Bottom: the "
        "largest update against half a gap of the grid; below 1 it cannot move a token."
    ),
    "critical_boundary": (
        "Above the boundary, Adam's step is more than half a gap of the grid, and rounding lets it pass. The lower "
        "panel tells how many elements on either side did move."
    ),
}

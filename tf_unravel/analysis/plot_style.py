"""What all figures are drawn with: Okabe and Ito's colours, told apart by the colour-blind; the rest tells in grey."""

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C8C8C")
MARKERS = ("o", "^", "s", "D", "v", "P", "X")
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)), (0, (8, 2)))
HATCHES = ("////", "\\\\\\\\", "....", "xxxx", "++++", "----", "oooo")

"""`forceserver bench`: what a step of i-PI costs with our server, with every other way to run the same model, and at the least.

    cases       what is simulated: classical, path integrals, multiple time stepping, contraction, several at once
    inputs      a case as an i-PI input
    contenders  who provides the forces: which processes, with how many threads; or why not
    stepper     i-PI as a child that runs so many steps when it is told to
    bare        the model alone behind the same orders: the limit
    control     the line on which orders go out and answers come back
    entrant     the processes of one contender: started, run, frozen, weighed, ended
    measure     all contenders of a case in turn, again and again
    results     what came of it; `statistics` has the medians of paired ratios and the exponents
    scaling     the same against atoms and beads, one contender at a time
    run         the whole, from options to output: `table`, `plot`, `record`

How time is measured. The contenders of a case are started one after the other and warmed up, so that loading a model and the
first, slow calls of TorchScript are no part of anything. Then they take turns: each repeat lets every contender run some steps
while all others are frozen, in an order that is reversed from repeat to repeat; noise that comes and goes hits all alike. It does
not where others keep all cores busy: the system shares them out by process and thread, so a contender of four processes gets more
of them than one of one, and threads that wait for each other in a loop get nowhere. Then look at the processor time as well.
The time per step is i-PI's: from the end of one step, outputs written, to the end of the next, by i-PI's own process. The first
step after each rest is not counted. Two contenders are compared by the ratio of their times in the same repeat, and the table
shows the median of these ratios.
"""

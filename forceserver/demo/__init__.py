"""The tour behind `forceserver demo`: short runs on real i-PI that show what direct forces do, and what mends it.

stops     what is run, for how long, and what that costs
tour      runs them one after the other, and goes on where it was interrupted
findings  the table with error bars and verdicts, the figure, the report
"""

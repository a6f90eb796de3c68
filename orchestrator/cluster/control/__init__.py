"""What the operator decides: from what its cache holds to what is to be done. Pure: no client, no clock, no thread.

| module | decides |
|---|---|
| queue | which key is worked on next, and when one that failed comes again |
| election | whether this replica leads |
| store | what is there, by owner |
| changes | whether an object differs from what is wanted |
| course | which stage a run is in, and whether it is over |
| attempts | which attempt of the learner goes on, which Jobs go |
| replicas | numbers at suspend and resume |
| contest | when somebody else scales what is at rest |
| facts, status | what is told of it |
| meter, observed | what the planner is given |
"""

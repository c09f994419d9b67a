"""GAP, mAP, Hit@1 and PERR over a data set."""

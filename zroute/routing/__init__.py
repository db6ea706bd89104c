"""Who gets it: from decorated functions to one closure per topic. Pure: no socket, no reactor."""

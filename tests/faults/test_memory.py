"""Memory is flat over many images and attacks; where it does not suffice the message says what to lower."""

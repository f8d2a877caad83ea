"""What each kind of server speaks: one file for each kind."""

"""What an unauthorised trainer does about a lock."""

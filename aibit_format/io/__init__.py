"""Gets and puts bytes: mapped files, ranges of URLs, reading ahead, leases, files that appear whole."""

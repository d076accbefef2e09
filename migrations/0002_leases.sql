-- What is true of this moment and this machine only, and so neither in the log nor derived from it (SPEC §6, §8).

-- Until when each lease lasts: the writer lock of a worktree, the claim of a task, the heartbeat of a session. That a lease
-- exists, and its epoch, follow from the log; only its end, which renewals put off, stands nowhere else.
CREATE TABLE leases (
  stream TEXT PRIMARY KEY,
  epoch INTEGER NOT NULL,
  ttl_ms INTEGER NOT NULL,
  -- Milliseconds since the epoch.
  expires_at INTEGER NOT NULL,
  -- 1 when a restart of the daemon gives it one more ttl.
  grace INTEGER NOT NULL CHECK (grace IN (0, 1)),
  -- The last renewal, so that its retry gets the same receipt. Older ones are forgotten: renewals leave no trace.
  renewal_principal TEXT,
  renewal_key TEXT,
  renewal_fingerprint TEXT,
  renewal_receipt TEXT
) STRICT, WITHOUT ROWID;
CREATE INDEX leases_by_end ON leases (expires_at);
CREATE INDEX leases_by_renewal ON leases (renewal_principal, renewal_key) WHERE renewal_key IS NOT NULL;

-- The bytes in the artifact store, each verified before its row was written (SPEC §8).
CREATE TABLE blobs (
  digest TEXT PRIMARY KEY,
  size INTEGER NOT NULL,
  stored_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

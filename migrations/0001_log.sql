-- The log and the command keys: all that cannot be derived from anything else (SPEC §4, §7, §9).
-- Read models are not here: they belong to their projections and are disposable.

-- Which log this is. One row, for ever; a restore makes a new log_id.
CREATE TABLE log (
  only INTEGER PRIMARY KEY CHECK (only = 1),
  log_id TEXT NOT NULL,
  created_at TEXT NOT NULL
) STRICT;

-- Every event, once. `body` is the RFC 8785 JSON that was hashed; the other columns repeat parts of it for look-ups.
CREATE TABLE events (
  seq_global INTEGER PRIMARY KEY,
  -- Grows with seq_global: unique, and found by bisection, without an index.
  event_id TEXT NOT NULL,
  stream TEXT NOT NULL,
  seq_stream INTEGER NOT NULL,
  event_type TEXT NOT NULL,
  schema_version INTEGER NOT NULL,
  workspace_id TEXT,
  project_id TEXT,
  subject_kind TEXT NOT NULL,
  -- 1 on the last event of a command: readers may stop only there (SPEC §5, guarantee 2).
  command_end INTEGER NOT NULL CHECK (command_end IN (0, 1)),
  body BLOB NOT NULL CHECK (length(body) <= 61440),
  UNIQUE (stream, seq_stream)
) STRICT;

-- Every (type, version) that was ever stored, so that a start need not read the log to know them (SPEC §13).
CREATE TABLE event_versions (
  event_type TEXT NOT NULL,
  schema_version INTEGER NOT NULL,
  PRIMARY KEY (event_type, schema_version)
) STRICT, WITHOUT ROWID;

-- Idempotency keys; they do not expire (SPEC §7). The first receipt is not kept as text: it follows from the command's
-- events, which are `events` in number and end at `seq_global`. `rest` has what they do not tell.
CREATE TABLE command_keys (
  principal TEXT NOT NULL,
  idempotency_key TEXT NOT NULL,
  fingerprint BLOB NOT NULL CHECK (length(fingerprint) = 32),
  command_type TEXT NOT NULL,
  seq_global INTEGER NOT NULL,
  events INTEGER NOT NULL,
  rest TEXT,
  UNIQUE (principal, idempotency_key)
) STRICT;

-- Where each projection stands (SPEC §6). Derived, and so free to change.
CREATE TABLE projections (
  name TEXT PRIMARY KEY,
  generation TEXT NOT NULL,
  as_of_seq INTEGER NOT NULL,
  error TEXT
) STRICT, WITHOUT ROWID;

-- Append-only, enforced in the database too (SPEC §9). REPLACE fires no delete trigger in a connection that has
-- recursive_triggers off, as other programs have, so the insert triggers refuse whatever would replace a row. What no
-- trigger can refuse is a next event that is forged in full, or a program that drops the triggers: log.verify finds
-- the first, the next start of the daemon the second.
CREATE TRIGGER events_no_update BEFORE UPDATE ON events
BEGIN SELECT RAISE(ABORT, 'events are append-only'); END;
CREATE TRIGGER events_no_delete BEFORE DELETE ON events
BEGIN SELECT RAISE(ABORT, 'events are append-only'); END;
CREATE TRIGGER events_in_order BEFORE INSERT ON events
WHEN NEW.seq_global IS NOT (SELECT coalesce(max(seq_global), 0) + 1 FROM events)
  OR NEW.seq_stream IS NOT (SELECT coalesce(max(seq_stream), 0) + 1 FROM events WHERE stream = NEW.stream)
  OR NEW.event_id <= (SELECT event_id FROM events WHERE seq_global = NEW.seq_global - 1)
BEGIN SELECT RAISE(ABORT, 'events are appended one after the other'); END;

CREATE TRIGGER log_once BEFORE INSERT ON log
WHEN EXISTS (SELECT 1 FROM log)
BEGIN SELECT RAISE(ABORT, 'the log keeps its id'); END;
CREATE TRIGGER log_no_update BEFORE UPDATE ON log
BEGIN SELECT RAISE(ABORT, 'the log keeps its id'); END;
CREATE TRIGGER log_no_delete BEFORE DELETE ON log
BEGIN SELECT RAISE(ABORT, 'the log keeps its id'); END;
CREATE TRIGGER command_keys_no_update BEFORE UPDATE ON command_keys
BEGIN SELECT RAISE(ABORT, 'command keys are append-only'); END;
CREATE TRIGGER command_keys_no_delete BEFORE DELETE ON command_keys
BEGIN SELECT RAISE(ABORT, 'command keys are append-only'); END;
CREATE TRIGGER command_keys_once BEFORE INSERT ON command_keys
WHEN EXISTS (SELECT 1 FROM command_keys WHERE principal = NEW.principal AND idempotency_key = NEW.idempotency_key)
  OR EXISTS (SELECT 1 FROM command_keys WHERE rowid = NEW.rowid)
BEGIN SELECT RAISE(ABORT, 'a command key is used once'); END;
CREATE TRIGGER event_versions_no_delete BEFORE DELETE ON event_versions
BEGIN SELECT RAISE(ABORT, 'stored versions are never forgotten'); END;
CREATE TRIGGER event_versions_no_update BEFORE UPDATE ON event_versions
BEGIN SELECT RAISE(ABORT, 'stored versions are never forgotten'); END;

/*
 * A disk that fails on command, for faults.ts: preloaded into a daemon, it stands between SQLite and libc.
 *
 * A fault is armed by a file of its name in $MP_FAULTS and disarmed by removing it; only the database and its WAL
 * (any file with "/kernel.db" in its path) are touched, by draft-eio only what is being uploaded. The file's number says more:
 *   fsync-eio      every fsync answers EIO; what was written stays in the page cache, as on a real disk
 *   draft-eio      the same of the files in the artifact store's tmp folder, and of nothing else
 *   write-eio  N   every (N+1)th write answers EIO
 *   enospc     N   every (N+1)th write answers ENOSPC, with half of its bytes written
 *   enospc-db  N   the same for the database alone, as when it cannot grow and its WAL still fits
 *   slow-fsync N   every fsync takes N ms more
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static atomic_ulong writes;

/* The number in the control file of a fault, 0 for an empty one, -1 while it is not armed. */
static long armed(const char *fault) {
  const char *folder = getenv("MP_FAULTS");
  char path[4096], text[32];
  if (folder == NULL) return -1;
  snprintf(path, sizeof path, "%s/%s", folder, fault);
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return -1;
  ssize_t length = read(fd, text, sizeof text - 1);
  close(fd);
  text[length < 0 ? 0 : length] = 0;
  return strtol(text, NULL, 10);
}

enum { OTHER, WAL, DATABASE, DRAFT };

static int kind(int fd) {
  char link[64], path[4096];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t length = readlink(link, path, sizeof path - 1);
  if (length < 0) return OTHER;
  path[length] = 0;
  const char *found = strstr(path, "/kernel.db");
  if (found == NULL) return strstr(path, "/artifacts/tmp/") == NULL ? OTHER : DRAFT;
  return strcmp(found, "/kernel.db") == 0 ? DATABASE : WAL;
}

static int sync_fault(int fd) {
  int file = kind(fd);
  if (file == OTHER) return 0;
  long slow = file == DRAFT ? 0 : armed("slow-fsync");
  if (slow > 0) nanosleep(&(struct timespec){slow / 1000, slow % 1000 * 1000000}, NULL);
  if (armed(file == DRAFT ? "draft-eio" : "fsync-eio") < 0) return 0;
  errno = EIO;
  return -1;
}

/* The errno a write answers with, 0 for none. */
static int write_fault(int fd) {
  int file = kind(fd);
  if (file == OTHER || file == DRAFT) return 0;
  long eio = armed("write-eio"), full = armed(file == DATABASE ? "enospc-db" : "enospc");
  if (full < 0) full = armed("enospc");
  if (eio < 0 && full < 0) return 0;
  unsigned long nth = atomic_fetch_add(&writes, 1) + 1;
  if (eio >= 0 && nth % (unsigned long)(eio + 1) == 0) return EIO;
  if (full >= 0 && nth % (unsigned long)(full + 1) == 0) return ENOSPC;
  return 0;
}

int fsync(int fd) { return sync_fault(fd) ? -1 : REAL(fsync)(fd); }
int fdatasync(int fd) { return sync_fault(fd) ? -1 : REAL(fdatasync)(fd); }

/* A write that finds no room leaves half of its bytes behind, so that what reads them meets a torn page. */
#define FAILING_WRITE(whole, half)               \
  int fault = write_fault(fd);                   \
  if (fault == 0) return whole;                  \
  if (fault == ENOSPC && half < 0) return -1;    \
  errno = fault;                                 \
  return -1;

ssize_t write(int fd, const void *bytes, size_t size) {
  FAILING_WRITE(REAL(write)(fd, bytes, size), REAL(write)(fd, bytes, size / 2))
}
ssize_t pwrite(int fd, const void *bytes, size_t size, off_t at) {
  FAILING_WRITE(REAL(pwrite)(fd, bytes, size, at), REAL(pwrite)(fd, bytes, size / 2, at))
}
ssize_t pwrite64(int fd, const void *bytes, size_t size, off64_t at) {
  FAILING_WRITE(REAL(pwrite64)(fd, bytes, size, at), REAL(pwrite64)(fd, bytes, size / 2, at))
}

/* List or verify an .aibit file: the use of aibit.h.

       cc -std=c11 -O2 -o aibit_list aibit_list.c
       ./aibit_list list FILE...      documents, metadata, tensors and their planes, separated by tabs
       ./aibit_list verify FILE...    all digests and padding besides; prints nothing if they are right

   Exits with 0, with 2 for wrong usage, or with 3 after it has printed which rule a file breaks. Names hold printable
   ASCII alone, so that they can be shown as they are. */

#define _POSIX_C_SOURCE 200809L
#define _FILE_OFFSET_BITS 64

#include "aibit.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* Maps a regular file; an empty one is NULL. A pipe of that name does not keep us waiting. */
static const char *map_file(const char *path, const void **data, uint64_t *size, struct stat *status) {
    int fd = open(path, O_RDONLY | O_NONBLOCK);
    if (fd < 0 || fstat(fd, status) != 0) return "AIB-E803: the file cannot be opened";
    const char *wrong = S_ISREG(status->st_mode) ? NULL : "AIB-E801: not a regular file";
    *size = (uint64_t)status->st_size;
    if (!wrong && *size > 0) {
        void *map = *size <= SIZE_MAX ? mmap(NULL, (size_t)*size, PROT_READ, MAP_SHARED, fd, 0) : MAP_FAILED;
        if (map == MAP_FAILED) wrong = "AIB-E803: the file cannot be mapped";
        else *data = map;
    }
    close(fd);
    return wrong;
}

static const char *check_unchanged(const char *path, const struct stat *before) {
    struct stat now;
    if (stat(path, &now) == 0 && now.st_size == before->st_size && now.st_mtim.tv_sec == before->st_mtim.tv_sec &&
        now.st_mtim.tv_nsec == before->st_mtim.tv_nsec)
        return NULL;
    return "AIB-E802: the file has changed while it was read";
}

/* The name of a dtype or role, or of one that is not known here: then its number, in `room`. */
static const char *named(const char *name, unsigned code, char room[16]) {
    if (!name) snprintf(room, 16, code < 0x8000 ? "unknown_%u" : "private_%04x", code);
    return name ? name : room;
}

static void list(const aibit_file *f) {
    char a[16], b[16];
    for (uint32_t i = 0; i < f->documents.count; i++) {
        aibit_document d = aibit_document_at(f, i);
        printf("document\t%.*s\t%" PRIu64 "\t%" PRIu64 "\n", d.name_length, d.name, d.offset, d.length);
    }
    static const char *const types[] = {"", "int", "float", "bool", "string", "bytes"};
    aibit_entry entry;
    for (uint64_t position = 0; position < f->metadata.length;) {
        if (aibit_next_entry(f, &position, &entry)) return; /* it has been checked, and is right */
        printf("metadata\t%.*s\t%s\t", entry.key_length, entry.key, types[entry.type]);
        if (entry.is_array) printf("%" PRIu32, entry.count);
        printf("\n");
    }
    for (uint32_t i = 0; i < f->tensors.count; i++) {
        aibit_tensor t = aibit_tensor_at(f, i), target = aibit_tensor_at(f, t.target);
        aibit_scheme s = aibit_scheme_at(f, t.scheme);
        printf("tensor\t%.*s\t%.*s\t%s\t", t.name_length, t.name, s.name_length, s.name,
               named(aibit_dtype_name(t.dtype), t.dtype, a));
        for (int k = 0; k < t.rank; k++) printf("%s%" PRIu64, k ? "," : "", t.shape[k]);
        printf("\t%s\t", t.flags & AIBIT_TRANSPOSED ? "transposed" : "");
        if (t.flags & AIBIT_ALIAS) printf("%.*s", target.name_length, target.name);
        printf("\n");
        for (uint32_t k = t.first_plane; k < t.first_plane + t.plane_count; k++) {
            aibit_plane p = aibit_plane_at(f, k);
            printf("plane\t%s\t%s\t", named(aibit_role_name(p.role), p.role, a),
                   named(aibit_dtype_name(p.dtype), p.dtype, b));
            printf("%" PRIu64 "\t%" PRIu64 "\n", p.offset, p.length);
        }
    }
}

static const char *handle(const char *path, bool verify) {
    const void *data = NULL;
    uint64_t size = 0;
    struct stat status;
    aibit_file file;
    const char *wrong = map_file(path, &data, &size, &status);
    if (!wrong) wrong = aibit_open(&file, data, size);
    if (!wrong && verify) wrong = aibit_verify(&file);
    if (!wrong) wrong = check_unchanged(path, &status);
    if (!wrong && !verify) list(&file);
    if (data) munmap((void *)data, (size_t)size);
    return wrong;
}

int main(int count, char **arguments) {
    bool verify = count > 2 && !strcmp(arguments[1], "verify");
    if (count < 3 || (!verify && strcmp(arguments[1], "list") != 0)) {
        fprintf(stderr, "usage: aibit_list list|verify FILE...\n");
        return 2;
    }
    int status = 0;
    for (int i = 2; i < count; i++) {
        const char *wrong = handle(arguments[i], verify);
        if (wrong) fprintf(stderr, "%s: %s\n", arguments[i], wrong), status = 3;
    }
    return status;
}

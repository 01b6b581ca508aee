// CRC-32 of files, of standard input, or of a text given as an argument: plain C with the standard
// library, nothing of wasmorch in it.
//
//     crc32 --text TEXT     of the text
//     crc32 FILE..          of each file
//     crc32                 of standard input
//
// One line each, `<8 hex digits>  <name>`. Exits 1 when a file cannot be read, 0 otherwise.

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

// The polynomial of IEEE 802.3, bits reversed: what gzip, PNG and `crc32` use.
static const uint32_t POLYNOMIAL = 0xedb88320;

static uint32_t table[256];

static void fill_table(void) {
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t value = byte;
        for (int bit = 0; bit < 8; bit++) value = value & 1 ? value >> 1 ^ POLYNOMIAL : value >> 1;
        table[byte] = value;
    }
}

static uint32_t add(uint32_t crc, const unsigned char *bytes, size_t count) {
    for (size_t i = 0; i < count; i++) crc = crc >> 8 ^ table[(crc ^ bytes[i]) & 0xff];
    return crc;
}

static void print(uint32_t crc, const char *name) {
    printf("%08lx  %s\n", (unsigned long)(crc ^ 0xffffffff), name);
}

static int stream(FILE *file, const char *name) {
    static unsigned char buffer[16384];
    uint32_t crc = 0xffffffff;
    size_t count;
    while ((count = fread(buffer, 1, sizeof buffer, file)) > 0) crc = add(crc, buffer, count);
    if (ferror(file)) {
        fprintf(stderr, "crc32: %s: %s\n", name, strerror(errno));
        return 1;
    }
    print(crc, name);
    return 0;
}

int main(int argc, char **argv) {
    fill_table();
    if (argc == 1) return stream(stdin, "-");
    if (argc == 3 && strcmp(argv[1], "--text") == 0) {
        print(add(0xffffffff, (const unsigned char *)argv[2], strlen(argv[2])), argv[2]);
        return 0;
    }
    int failed = 0;
    for (int i = 1; i < argc; i++) {
        FILE *file = fopen(argv[i], "rb");
        if (file == NULL) {
            fprintf(stderr, "crc32: %s: %s\n", argv[i], strerror(errno));
            failed = 1;
            continue;
        }
        failed |= stream(file, argv[i]);
        fclose(file);
    }
    return failed;
}

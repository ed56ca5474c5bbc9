package page

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash/crc32"

	"github.com/longctx/longctx/kernel"
)

// Version is the latest of the format. A page is of the first that has its Coding.
const Version = 2

// version is that of a page.
func (l *Layout) version() int {
	k := kernel.Coding{Key: kernel.Quantizer{Codec: l.Coding.Key.Codec}, Value: kernel.Quantizer{Codec: l.Coding.Key.Codec, Group: l.Coding.Value.Group}}
	if l.Coding.IsZero() || l.Coding == k && k.Key.Codec <= kernel.Int4 && k.Value.Group > 0 {
		return 1
	}
	return 2
}

// HeaderBytes is the length of a header, without its namespace.
const HeaderBytes = 128

// MaxNamespace is the largest length of a namespace, in bytes.
const MaxNamespace = 1024

// Key names a page. Two pages of one key hold the same: the namespace says all
// that a page depends on but its tokens and those before it (model, adapter,
// scales of FP8, tenant), the hash says those. Pages of one namespace are never
// given for another.
type Key struct {
	Namespace string
	Hash      [32]byte
}

// Name is a name for k in stores that take no bytes: 64 hexadecimal digits, the
// SHA-256 of the length of the namespace (8 bytes, little-endian), the namespace
// and the hash.
func (k Key) Name() string {
	b := binary.LittleEndian.AppendUint64(make([]byte, 0, 8+len(k.Namespace)+len(k.Hash)), uint64(len(k.Namespace)))
	b = append(append(b, k.Namespace...), k.Hash[:]...)
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

func (k Key) String() string { return fmt.Sprintf("%q/%x…", k.Namespace, k.Hash[:6]) }

// Header says what a page holds.
type Header struct {
	Key    Key
	Layout Layout
	Tokens int // rows that count, 1 to PageSize
}

var (
	magic = [8]byte{'L', 'C', 'K', 'V', 'P', 'A', 'G', 'E'}
	table = crc32.MakeTable(crc32.Castagnoli)
)

// Bytes is the length of the page: header, namespace and payload.
func (h *Header) Bytes() (int64, error) {
	_, payload, err := h.Layout.Segments()
	return int64(HeaderBytes) + int64(len(h.Key.Namespace)) + payload, err
}

// Append appends a page to dst. A header that no page can have is a
// *LayoutError, and so is a payload of another length than Layout.Segments has.
func Append(dst []byte, h *Header, payload []byte) ([]byte, error) {
	at := len(dst)
	dst, room, err := Begin(dst, h)
	if err != nil {
		return dst[:at], err
	}
	if len(payload) != len(room) {
		return dst[:at], layoutError("payload", len(payload), fmt.Sprint(len(room), " bytes"))
	}
	copy(room, payload)
	Seal(dst[at:])
	return dst, nil
}

// Begin appends a page with a payload of zeros, for the caller to fill and Seal.
func Begin(dst []byte, h *Header) (page, payload []byte, err error) {
	_, n, err := h.Layout.Segments()
	switch {
	case err != nil:
		return dst, nil, err
	case h.Tokens < 1 || h.Tokens > h.Layout.PageSize:
		return dst, nil, layoutError("Tokens", h.Tokens, fmt.Sprint("1 to PageSize ", h.Layout.PageSize))
	case len(h.Key.Namespace) > MaxNamespace:
		return dst, nil, layoutError("Namespace", fmt.Sprint(len(h.Key.Namespace), " bytes"), fmt.Sprint("at most ", MaxNamespace))
	case int64(int(n)) != n:
		return dst, nil, layoutError("payload", fmt.Sprint(n, " bytes"), "what this machine can address")
	}
	var b [HeaderBytes]byte
	le := binary.LittleEndian
	copy(b[:], magic[:])
	le.PutUint16(b[8:], uint16(h.Layout.version()))
	le.PutUint16(b[10:], HeaderBytes)
	le.PutUint32(b[20:], uint32(len(h.Key.Namespace)))
	le.PutUint64(b[24:], uint64(n))
	copy(b[32:], h.Key.Hash[:])
	l := &h.Layout
	for i, x := range []int{l.FirstLayer, l.Layers, l.PageSize, h.Tokens, l.KVHeads, l.HeadDim, l.ValueDim, l.Coding.Value.Group} {
		le.PutUint32(b[64+4*i:], uint32(x))
	}
	b[96], b[97], b[98] = dtypeCode(l.DType), uint8(l.Coding.Key.Codec), uint8(l.KeyStorage)
	if l.version() > 1 {
		putCoding(b[:], &l.Coding)
	}
	dst = append(append(dst, b[:]...), h.Key.Namespace...)
	at := len(dst)
	dst = append(dst, make([]byte, n)...)
	return dst, dst[at:], nil
}

// Seal writes the checksums of a page that Begin made.
func Seal(page []byte) {
	le := binary.LittleEndian
	start := HeaderBytes + le.Uint32(page[20:])
	le.PutUint32(page[16:], crc32.Checksum(page[start:], table))
	le.PutUint32(page[12:], headerSum(page[:start]))
}

func headerSum(b []byte) uint32 {
	sum := crc32.Update(0, table, b[:12])
	sum = crc32.Update(sum, table, make([]byte, 4))
	return crc32.Update(sum, table, b[16:])
}

// ParseHeader reads the header and namespace at the start of b, which may end
// after them, and gives the length of the whole page. What is no page is a
// *FormatError, a page of another version a *VersionError.
func ParseHeader(b []byte) (h Header, bytes int64, err error) {
	le := binary.LittleEndian
	if len(b) < HeaderBytes {
		return h, 0, formatError("%d bytes, want a header of %d", len(b), HeaderBytes)
	}
	if [8]byte(b) != magic {
		return h, 0, formatError("it begins with %q, want %q", b[:8], magic[:])
	}
	version := int(le.Uint16(b[8:]))
	if version < 1 || version > Version {
		return h, 0, &VersionError{version}
	}
	n := le.Uint32(b[20:])
	if n > MaxNamespace || len(b) < HeaderBytes+int(n) {
		return h, 0, formatError("namespace of %d bytes, want at most %d, in %d bytes", n, MaxNamespace, len(b))
	}
	b = b[:HeaderBytes+n]
	if got, want := headerSum(b), le.Uint32(b[12:]); got != want {
		return h, 0, formatError("checksum of the header is %#08x, want %#08x", got, want)
	}
	l := &h.Layout
	for i, x := range []*int{&l.FirstLayer, &l.Layers, &l.PageSize, &h.Tokens, &l.KVHeads, &l.HeadDim, &l.ValueDim, &l.Coding.Value.Group} {
		*x = int(int32(le.Uint32(b[64+4*i:])))
	}
	l.DType, l.Coding.Key.Codec, l.KeyStorage = dtypeOf(b[96]), kernel.Codec(b[97]), kernel.KeyStorage(b[98])
	rest := b[99:HeaderBytes]
	if version == 1 {
		l.Coding.Value.Codec = l.Coding.Key.Codec
	} else {
		getCoding(b, &l.Coding)
		rest = b[codingEnd:HeaderBytes]
	}
	h.Key = Key{Namespace: string(b[HeaderBytes:]), Hash: [32]byte(b[32:])}
	_, payload, err := l.Segments()
	if err != nil {
		return h, 0, formatError("%v", err)
	}
	switch {
	case l.version() != version:
		return h, 0, formatError("version %d with Coding %v, want %d", version, l.Coding, l.version())
	case le.Uint16(b[10:]) != HeaderBytes:
		return h, 0, formatError("header of %d bytes, want %d", le.Uint16(b[10:]), HeaderBytes)
	case h.Tokens < 1 || h.Tokens > l.PageSize:
		return h, 0, formatError("%d tokens in a page of %d", h.Tokens, l.PageSize)
	case le.Uint64(b[24:]) != uint64(payload):
		return h, 0, formatError("payload of %d bytes, want %d", le.Uint64(b[24:]), payload)
	}
	for _, x := range rest {
		if x != 0 {
			return h, 0, formatError("bytes %d to 127 of the header are not 0", HeaderBytes-len(rest))
		}
	}
	return h, int64(len(b)) + payload, nil
}

// codingEnd is where the header of version 2 ends.
const codingEnd = 115

// codingFlags are the bits of byte 114.
func codingFlags(c *kernel.Coding) [4]*bool {
	return [4]*bool{&c.Key.Levels, &c.Key.RMS, &c.Value.Levels, &c.Value.RMS}
}

// putCoding writes what version 2 has beside version 1.
func putCoding(b []byte, c *kernel.Coding) {
	le := binary.LittleEndian
	b[99], b[112], b[113] = uint8(c.Value.Codec), uint8(c.Key.Rank), uint8(c.Value.Rank)
	for i, x := range []int{c.Key.Group, c.Key.Outliers, c.Value.Outliers} {
		le.PutUint32(b[100+4*i:], uint32(x))
	}
	for i, x := range codingFlags(c) {
		if *x {
			b[114] |= 1 << i
		}
	}
}

func getCoding(b []byte, c *kernel.Coding) {
	c.Value.Codec, c.Key.Rank, c.Value.Rank = kernel.Codec(b[99]), int(b[112]), int(b[113])
	for i, x := range []*int{&c.Key.Group, &c.Key.Outliers, &c.Value.Outliers} {
		*x = int(int32(binary.LittleEndian.Uint32(b[100+4*i:])))
	}
	for i, x := range codingFlags(c) {
		*x = b[114]>>i&1 != 0
	}
	if b[114]>>4 != 0 {
		c.Key.Rank = -1 // a flag that there is not: check refuses it
	}
}

// Parse reads a whole page and checks all of it. The payload shares memory with
// b. Errors are those of ParseHeader.
func Parse(b []byte) (h Header, payload []byte, err error) {
	h, n, err := ParseHeader(b)
	if err != nil {
		return h, nil, err
	}
	if int64(len(b)) != n {
		return h, nil, formatError("%d bytes, want %d", len(b), n)
	}
	payload = b[HeaderBytes+len(h.Key.Namespace):]
	if got, want := crc32.Checksum(payload, table), binary.LittleEndian.Uint32(b[16:]); got != want {
		return h, nil, formatError("checksum of the payload is %#08x, want %#08x", got, want)
	}
	return h, payload, nil
}

// Check is Parse of a page that has to be that of k.
func Check(b []byte, k Key) error {
	h, _, err := Parse(b)
	if err != nil {
		return err
	}
	if h.Key != k {
		return formatError("it is of key %v, want %v", h.Key, k)
	}
	return nil
}

// FormatError reports bytes that are not the page they should be: damaged, cut
// short, or of another key.
type FormatError struct{ Reason string }

func (e *FormatError) Error() string { return "page: not a sound page: " + e.Reason }

func formatError(format string, args ...any) error {
	return &FormatError{fmt.Sprintf(format, args...)}
}

// VersionError reports a page of a version that this package does not read.
type VersionError struct{ Got int }

func (e *VersionError) Error() string {
	return fmt.Sprintf("page: version %d of the format, want 1 to %d", e.Got, Version)
}

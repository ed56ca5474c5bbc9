package kerneltest

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
)

// The golden hashes: SHA-256 of the outputs of every Exact case, the same for
// every backend and machine. They change only with the rules of package
// kernel; TestGolden -update writes them.

//go:embed testdata/golden.txt
var goldenText []byte

// golden is the hash of each case by name.
var golden = sync.OnceValue(func() map[string]string {
	out := map[string]string{}
	for s := bufio.NewScanner(bytes.NewReader(goldenText)); s.Scan(); {
		if sum, name, ok := strings.Cut(s.Text(), "  "); ok {
			out[name] = sum
		}
	}
	return out
})

// FormatGolden is the text of testdata/golden.txt for hashes by case name.
func FormatGolden(hashes map[string]string) []byte {
	var b bytes.Buffer
	for _, name := range slices.Sorted(maps.Keys(hashes)) {
		fmt.Fprintf(&b, "%s  %s\n", hashes[name], name)
	}
	return b.Bytes()
}

// hash is the SHA-256 of the elements in order, little-endian, NaNs alike.
func hash(all ...*words) string {
	h := sha256.New()
	for _, w := range all {
		b := make([]byte, 0, 4*len(w.bits))
		for i := range w.bits {
			switch w.dtype.Size() {
			case 4:
				b = binary.LittleEndian.AppendUint32(b, w.canonical(i))
			case 1:
				b = append(b, uint8(w.canonical(i)))
			default:
				b = binary.LittleEndian.AppendUint16(b, uint16(w.canonical(i)))
			}
		}
		h.Write(b)
	}
	return hex.EncodeToString(h.Sum(nil))
}

func (a *answer) hash() string {
	var all []*words
	for _, f := range a.fields() {
		all = append(all, f.words)
	}
	return hash(all...)
}

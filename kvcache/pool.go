package kvcache

// pool counts the tables and other holders of each page, and keeps the pages
// that nobody has on a stack: a page just freed is the likeliest to be in a
// near cache.
type pool struct {
	refs   []int32 // [pages] tables that hold the page, and holds of others
	held   []int32 // [pages] of refs: holds of others, by Cache.Hold
	free   []int32 // the pages with refs 0; the last is the next to be given
	shared int     // pages with refs above 1
	cached int     // pages in no table, but held
}

func newPool(pages int) pool {
	p := pool{refs: make([]int32, pages), held: make([]int32, pages), free: make([]int32, pages)}
	for i := range p.free {
		p.free[i] = int32(pages - 1 - i)
	}
	return p
}

// grow makes more pages, which are given after those that there are.
func (p *pool) grow(pages int) {
	have := len(p.refs)
	p.refs = append(p.refs, make([]int32, pages-have)...)
	p.held = append(p.held, make([]int32, pages-have)...)
	free := make([]int32, 0, pages)
	for page := pages - 1; page >= have; page-- {
		free = append(free, int32(page))
	}
	p.free = append(free, p.free...)
}

// take gives a free page to one table. The caller has seen that there is one.
func (p *pool) take() int32 {
	last := len(p.free) - 1
	page := p.free[last]
	p.free = p.free[:last]
	p.refs[page] = 1
	return page
}

// hold adds a table to those of a used page.
func (p *pool) hold(page int32) {
	if p.refs[page] == p.held[page] {
		p.cached--
	}
	if p.refs[page]++; p.refs[page] == 2 {
		p.shared++
	}
}

// drop removes a table from those of a page.
func (p *pool) drop(page int32) {
	p.refs[page]--
	switch p.refs[page] {
	case 0:
		p.free = append(p.free, page)
	case 1:
		p.shared--
	}
	if n := p.refs[page]; n > 0 && n == p.held[page] {
		p.cached++
	}
}

// keep makes the last reference that hold added one that is no table's.
func (p *pool) keep(page int32) {
	if p.held[page]++; p.held[page] == p.refs[page] {
		p.cached++
	}
}

// let undoes keep; drop has to follow.
func (p *pool) let(page int32) {
	if p.held[page] == p.refs[page] {
		p.cached--
	}
	p.held[page]--
}

// dropAll drops pages from the last to the first, so that the first is the
// next to be given.
func (p *pool) dropAll(pages []int32) {
	for i := len(pages) - 1; i >= 0; i-- {
		p.drop(pages[i])
	}
}

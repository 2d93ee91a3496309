// Elements with text of their own whose colours are nearer than WCAG's 4.5 : 1, drawn over every ground behind them.
() => {
  const context = document.createElement('canvas').getContext('2d', { willReadFrequently: true })
  const mixed = colours => {
    context.clearRect(0, 0, 1, 1)
    for (const colour of colours) { context.fillStyle = colour; context.fillRect(0, 0, 1, 1) }
    return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3)
  }
  const light = rgb => rgb.map(v => v / 255).map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0)
  const poor = []
  for (const node of document.querySelectorAll('body *')) {
    const own = [...node.childNodes].some(child => child.nodeType === 3 && child.textContent.trim())
    if (!own || !node.checkVisibility() || node.disabled || ['SCRIPT', 'STYLE'].includes(node.tagName)) continue
    const grounds = []
    for (let at = node; at; at = at.parentElement) grounds.unshift(getComputedStyle(at).backgroundColor)
    const ground = mixed(grounds), ink = mixed([...grounds, getComputedStyle(node).color])
    const [high, low] = [light(ground), light(ink)].sort((a, b) => b - a)
    const ratio = (high + 0.05) / (low + 0.05)
    if (ratio < 4.5) poor.push([node.tagName, node.textContent.slice(0, 20), ratio])
  }
  return poor
}
